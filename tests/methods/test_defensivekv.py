from __future__ import annotations

import numpy as np
import pytest

from kvevict import DefensiveKV, InputError, LayerDefensiveKV, prefill
from tests.methods.brute import Prompt, best, kept, pool, run

SETTINGS = [
    # n, kv_heads, group, window, kernel, budget, first_stage_ratio
    (120, 2, 3, 8, 5, 36, 0.9),
    (120, 3, 1, 8, 1, 24, 0.6),
    (150, 2, 2, 32, 5, 40, 0.9),
    (120, 2, 3, 8, 5, 12, 1.0),
    (120, 2, 2, 8, 5, 30, 0.0),
    (60, 2, 2, 32, 5, 20, 0.9),
]


def scores(prompt: Prompt, layer: int, window: int, kernel: int, most: int, ratio: float):
    """``[kv_heads, n - window]``, and of each head which come first, in order."""
    before = prompt.n - window
    rows = prompt.weights(layer)[:, :, -window:]
    norms = np.abs(prompt.projected(layer)).sum(-1).mean(1)
    norms = norms / norms.sum(0)
    result, sure = [], []
    for h in range(prompt.kv_heads):
        worst = np.zeros(before)
        for row in rows[h].reshape(-1, prompt.n):
            pooled = pool(row, window, kernel)[:before]
            worst = np.maximum(worst, pooled * row[:before].sum() / pooled.sum())
        result.append(np.maximum(worst, worst.mean()) * norms[h, :before])
        mean = rows[h].mean((0, 1))
        received, first = mean[before:].sum(), []
        for j in sorted(range(before), key=lambda j, mean=mean: (-mean[j], j)):
            received += mean[j]
            if received >= ratio or len(first) == most:
                break
            first.append(j)
        sure.append(first)
    return np.array(result), sure


def places(prompt: Prompt, layer: int, window: int, *settings) -> list[tuple]:
    """Entries before the window, as they are to be kept: the sure ones, then by score."""
    own, sure = scores(prompt, layer, window, *settings)
    first = {(h, j) for h, chosen in enumerate(sure) for j in chosen}
    return [
        ((h, j) not in first, -own[h, j], layer, h, j)
        for h in range(prompt.kv_heads)
        for j in range(prompt.n - window)
    ]


def chosen(prompt: Prompt, entries: list[tuple], window: int) -> list[list[list[int]]]:
    recent = range(prompt.n - window, prompt.n)
    result = [[list(recent) for _ in range(prompt.kv_heads)] for _ in range(prompt.layers)]
    for *_, layer, h, j in entries:
        result[layer][h].append(j)
    return [[sorted(positions) for positions in layer] for layer in result]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [DefensiveKV, LayerDefensiveKV])
def test_keeps_the_sure_ones_and_the_worst_cases(kind, setting) -> None:
    n, kv_heads, group, window, kernel, budget, ratio = setting
    prompt = Prompt(n + budget, n, layers=3, kv_heads=kv_heads, group=group)
    policy = kind(budget=budget, window_size=window, kernel_size=kernel, first_stage_ratio=ratio)
    inside = min(window, budget)
    most, free = max(0, budget - window), (budget - inside) * kv_heads
    layers = [places(prompt, layer, window, kernel, most, ratio) for layer in range(3)]
    if kind is DefensiveKV:
        entries = [entry for own in layers for entry in sorted(own)[:free]]
    else:
        entries = sorted(entry for own in layers for entry in own)[: 3 * free]
    assert kept(run(policy, prompt), prompt) == chosen(prompt, entries, inside)


def test_budgets_do_not_share_their_scores() -> None:
    """How many entries are sure depends on what may be kept."""
    prompt = Prompt(5, 150)
    policies = [
        kind(ratio, window_size=8, min_eviction_seqlen=0)
        for kind in (DefensiveKV, LayerDefensiveKV)
        for ratio in (0.1, 0.3)
    ]
    together = prefill(prompt, [1] * 150, policies, record=True)
    alone = [kept(run(policy, prompt), prompt) for policy in policies]
    assert [kept(session, prompt) for session in together] == alone
    first = [set(scores(prompt, 0, 8, 5, most, 0.9)[1][0]) for most in (7, 37)]
    assert first[0] < first[1]


def test_sure_entries_are_those_of_the_highest_mean() -> None:
    """Against a mean in one query: the brute force of the other tests, itself looked at."""
    prompt = Prompt(2, 90, layers=1, kv_heads=1, group=2)
    (_, (sure,)) = scores(prompt, 0, 8, 5, 20, 0.9)
    mean = prompt.weights(0)[0, :, -8:].mean((0, 1))[:82]
    assert set(sure) == best(mean, len(sure), range(82))
    assert len(sure) == 20 or mean[sure].sum() < 0.9


@pytest.mark.parametrize("setting", [{"window_size": 0}, {"kernel_size": 4}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        DefensiveKV(**setting)
