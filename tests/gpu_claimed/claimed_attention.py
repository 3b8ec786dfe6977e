"""Attention without flash attention or kernels, on tensors that claim an older GPU: scores near 100
in half precision. Run by pytest in a process of its own: see test_paddle_claimed.py."""

from __future__ import annotations

import claimed
import paddle
import pytest

from kvevict import ops
from kvevict.attention import attend, blockwise
from tests.attention import half

claimed.claim((7, 5))
ops.has_triton = lambda: False


@pytest.mark.parametrize("dtype", half.DTYPES)
@pytest.mark.parametrize("rows", [7, 1000])
def test_prompt(monkeypatch, dtype, rows):
    monkeypatch.setattr(blockwise, "BLOCK", 1)
    monkeypatch.setattr(blockwise, "FEWEST_ROWS", rows)
    half.check_prompt(paddle, dtype, attend)


@pytest.mark.parametrize("dtype", half.DTYPES)
def test_new_tokens(dtype):
    half.check_new_tokens(paddle, dtype)


def test_a_sum_of_many_weights_does_not_overflow():
    half.check_many_alike(paddle)
