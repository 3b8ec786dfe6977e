from __future__ import annotations

import numpy as np
import pytest

from kvevict import Fade, InputError, build
from tests.methods.brute import Prompt, kept, run, shares


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window_size": 5, "back": 0, "ahead": 9, "plateau": 2.0, "n_sink": 1},
        {"window_size": 200, "back": 40, "ahead": 200, "n_sink": 0, "recent": 0},
    ],
    ids=str,
)
def test_rows_and_neighbours_count_by_their_distance(settings: dict) -> None:
    n, budget = 120, 24
    prompt = Prompt(3, n, layers=2, kv_heads=2, group=3)
    policy = Fade(budget=budget, **settings)
    sinks, recent = policy.n_sink, policy.recent
    to_from = np.arange(n)[:, None] - np.arange(n)[None, :]  # of an entry and of one that lends
    lends = (to_from >= -policy.back) & (to_from <= policy.ahead)
    lends[:, :sinks] = lends[:, n - recent :] = False
    share = lends / (1 + np.abs(to_from) / policy.plateau)
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        rows = prompt.weights(layer)[:, :, -policy.window_size :]
        distance = np.arange(rows.shape[2], 0, -1)[:, None]
        norms = np.linalg.norm(rows / distance, axis=2)
        own = (norms * np.linalg.norm(prompt.projected(layer), axis=-1)).sum(1)
        scores = (own[:, None, :] * share).max(-1)[:, sinks : n - recent]
        free = budget - recent - sinks
        for head, count, positions in zip(scores, shares(scores, free, int(0.2 * free)), heads):
            ranked = sorted(range(len(head)), key=lambda j: (-head[j], j))[:count]
            ranked = [*range(sinks), *(sinks + j for j in ranked), *range(n - recent, n)]
            assert positions == sorted(ranked)


def test_the_point_of_the_search_that_was_chosen() -> None:
    """What docs/fade.md reports was measured under that name."""
    prompt = Prompt(4, 150, layers=2, kv_heads=2, group=2)
    tail = {"tail": 1, "plateau": 4, "back": 7, "ahead": 31, "pool": "max", "n_sink": 4}
    searched = build("rows-variant", keep_ratio=0.2, min_eviction_seqlen=0, power=2, **tail)
    own = Fade(0.2, min_eviction_seqlen=0)
    assert kept(run(own, prompt), prompt) == kept(run(searched, prompt), prompt)


@pytest.mark.parametrize("settings", [{"window_size": 0}, {"recent": -1}, {"plateau": 0.0}])
def test_bad_settings(settings: dict) -> None:
    with pytest.raises(InputError):
        Fade(0.2, **settings)
