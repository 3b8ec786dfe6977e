"""Half precision on PyTorch's CPU, which computes in it; Paddle's: tests/gpu_claimed."""

from __future__ import annotations

import pytest
import torch

from kvevict.attention import blockwise
from tests.attention import half


@pytest.mark.parametrize("dtype", half.DTYPES)
@pytest.mark.parametrize("rows", [7, 1000])
def test_prompt(monkeypatch, dtype, rows):
    monkeypatch.setattr(blockwise, "BLOCK", 1)
    monkeypatch.setattr(blockwise, "FEWEST_ROWS", rows)
    half.check_prompt(torch, dtype)


@pytest.mark.parametrize("dtype", half.DTYPES)
def test_new_tokens(dtype):
    half.check_new_tokens(torch, dtype)


def test_a_sum_of_many_weights_does_not_overflow():
    half.check_many_alike(torch)
