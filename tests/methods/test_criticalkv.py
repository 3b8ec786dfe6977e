from __future__ import annotations

import numpy as np
import pytest

from kvevict import CriticalAdaKV, CriticalKV, InputError, scoring
from tests.methods.brute import Prompt, best, kept, pool, run, shares

N, WINDOW = 120, 8


def two_stages(scores, norms, budget: int, first_stage_ratio: float, epsilon: float) -> list[int]:
    """``budget`` entries, the window's included; the first stage fills a share of all of it."""
    before = range(N - WINDOW)
    first = best(scores, max(0, int(budget * first_stage_ratio) - WINDOW), before)
    rest = [j for j in before if j not in first]
    second = best((scores + epsilon) * norms, budget - WINDOW - len(first), rest)
    return sorted(first | second | set(range(N - WINDOW, N)))


def inputs(prompt: Prompt, layer: int) -> tuple[np.ndarray, np.ndarray]:
    sums = prompt.weights(layer)[:, :, -WINDOW:].sum((1, 2))
    norms = np.abs(prompt.projected(layer)).sum((1, 3))
    return np.stack([pool(s, WINDOW, 7) for s in sums]), norms


@pytest.mark.parametrize("first_stage_ratio", [0.5, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_over_snapkv(
    first_stage_ratio: float, epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 50)  # values are projected in three parts
    prompt = Prompt(7, N)
    policy = CriticalKV(
        0.3,
        window_size=WINDOW,
        first_stage_ratio=first_stage_ratio,
        epsilon=epsilon,
        min_eviction_seqlen=0,
    )
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        scores, norms = inputs(prompt, layer)
        for h, positions in enumerate(heads):
            assert positions == two_stages(scores[h], norms[h], 36, first_stage_ratio, epsilon)


def test_over_adakv() -> None:
    prompt = Prompt(8, N, kv_heads=3)
    policy = CriticalAdaKV(0.3, window_size=WINDOW, min_eviction_seqlen=0)
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        scores, norms = inputs(prompt, layer)
        counts = shares(scores[:, : N - WINDOW], 36 - WINDOW, int((36 - WINDOW) * 0.2))
        for h, positions in enumerate(heads):
            assert positions == two_stages(scores[h], norms[h], counts[h] + WINDOW, 0.5, 1e-4)


def test_values_that_are_not_finite() -> None:
    prompt = Prompt(9, N)
    prompt.v[1, 0, 5] = np.nan
    with pytest.raises(FloatingPointError, match=r"criticalkv.*layer 1"):
        run(CriticalKV(0.3, window_size=WINDOW, min_eviction_seqlen=0), prompt)


def test_share_out_of_range() -> None:
    with pytest.raises(InputError, match="first_stage_ratio must lie between 0 and 1"):
        CriticalKV(first_stage_ratio=-0.1)
