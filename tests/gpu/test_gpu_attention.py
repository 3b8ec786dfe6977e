"""Attention over a prompt as the GPU does it, beside float64."""

from __future__ import annotations

import numpy as np
import pytest
from common import DRY, DTYPE, NEEDS, ROUNDING, array, attention, error, framework, heads

from kvevict import ops
from kvevict.attention import ColumnStatistic, attend, attend_behind

pytestmark = [*NEEDS]
TOKENS = 200 if DRY else 1777


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_flash_attention_its_log_sum_exp_and_the_statistics(head_dim):
    q, k, v = (heads(count, TOKENS, head_dim) for count in (8, 2, 2))
    sums, squares = ColumnStatistic("sum", 90), ColumnStatistic("sum_of_squares", None, False)
    assert DRY or ops.flash_applies(q)
    got = attend(q, k, v, (sums, squares))
    out, weights, lse = attention(*map(array, (q, k, v)))
    assert error(got.out, out) < ROUNDING[DTYPE]
    assert got.lse.dtype == framework().float32 and error(got.lse, lse) < 1e-4
    # Exponentials of scores: what rounds the scores shows many times over.
    assert error(got.columns[sums], weights[:, -90:].sum(1).reshape(2, 4, -1).sum(1)) < 3e-2
    assert error(got.columns[squares], (weights**2).sum(1)) < 3e-2


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("keys", [1, 77, TOKENS])
def test_tokens_behind_a_prompt_see_all_of_it_and_themselves_causally(head_dim, keys):
    prompt, own = ([heads(2, tokens, head_dim) for _ in range(2)] for tokens in (keys, TOKENS // 2))
    q = heads(8, TOKENS // 2, head_dim)
    got = attend_behind(q, *prompt, *own)
    whole = (np.concatenate([array(x), array(y)], axis=2) for x, y in zip(prompt, own))
    out, *_ = attention(array(q), *whole)
    assert got.dtype == q.dtype and error(got, out) < ROUNDING[DTYPE]
