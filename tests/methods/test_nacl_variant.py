"""Variants of NACL for studies: what they keep, by hand."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from kvevict import NACL, InputError, build
from kvevict.methods.nacl_variant import Heads
from tests.methods.brute import Prompt, best, kept, pool, run

N, ROWS = 300, 15  # ROWS is a twentieth
KV_HEADS, GROUP = 3, 2


def variant(**settings):
    """NACL's shares without its draw: 60 entries, 3 of them protected, 1 sink and 2 recent."""
    rows = {"proxy_tokens_ratio": ROWS / N, "min_eviction_seqlen": 0}
    return build("nacl-variant", random=False, **rows, **settings)


def weights(prompt: Prompt, layer: int, causal: bool) -> np.ndarray:
    """Of the last ``ROWS`` rows, float64 ``[kv_heads, group, ROWS, N]``."""
    if causal:
        return prompt.weights(layer)[:, :, -ROWS:]
    q, k = prompt.q[layer].astype(np.float64), prompt.k[layer].astype(np.float64)
    q = q.reshape(KV_HEADS, GROUP, N, -1)[:, :, -ROWS:]
    exps = np.exp(q @ k[:, None].swapaxes(-1, -2) / q.shape[-1] ** 0.5)
    return exps / exps.sum(-1, keepdims=True)


@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", get_args(Heads))
def test_the_score_is_what_it_says(heads: str, causal: bool, kernel: int) -> None:
    prompt = Prompt([kernel, causal], N, kv_heads=KV_HEADS, group=GROUP)
    policy = variant(heads=heads, causal=causal, kernel=kernel)
    for layer, own_kept in enumerate(kept(run(policy, prompt), prompt)):
        sums = weights(prompt, layer, causal).sum(2)
        scores = {
            "group": sums.sum(1),
            # Query head h, counted over all groups, for kv head h.
            "release": sums.reshape(KV_HEADS * GROUP, N)[:KV_HEADS],
            "next": [sums[(head + 1) % KV_HEADS].sum(0) for head in range(KV_HEADS)],
            "layer": [sums.sum((0, 1))] * KV_HEADS,
        }[heads]
        for own, positions in zip(scores, own_kept):
            chosen = best(pool(own, 0, kernel), 57, range(1, N - 2))
            assert positions == sorted({0, N - 2, N - 1} | chosen)


def test_as_it_comes_it_is_nacl() -> None:
    prompt = Prompt(5, N, kv_heads=KV_HEADS, group=GROUP)
    common = {"keep_ratio": 0.3, "seed": 4, "min_eviction_seqlen": 0}
    form, plain = build("nacl-variant", **common), NACL(**common)
    assert kept(run(form, prompt), prompt) == kept(run(plain, prompt), prompt)
    assert form.name == "nacl-variant"


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="kernel_size must be odd"):
        build("nacl-variant", kernel=2)
    with pytest.raises(InputError, match="heads must be 'group' or 'release'"):
        build("nacl-variant", heads="other")
    with pytest.raises(InputError, match="has no setting 'window'"):
        build("nacl-variant", window=2)
