from __future__ import annotations

import numpy as np
import pytest

from kvevict import Fade, InputError, build
from tests.methods.brute import Prompt, choose, kept, pool, run, shares


@pytest.mark.parametrize(("window", "kernel", "recent"), [(32, 15, 8), (5, 3, 8), (200, 1, 0)])
def test_rows_count_by_their_distance_from_the_end(window: int, kernel: int, recent: int) -> None:
    n, budget = 120, 24
    prompt = Prompt(3, n, layers=2, kv_heads=2, group=3)
    policy = Fade(budget=budget, window_size=window, kernel_size=kernel, recent=recent)
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        rows = prompt.weights(layer)[:, :, -window:]
        distance = np.arange(rows.shape[2], 0, -1)[:, None]
        norms = np.linalg.norm(rows / distance, axis=2)
        scores = (norms * np.linalg.norm(prompt.projected(layer), axis=-1)).sum(1)
        scores = np.stack([pool(own, recent, kernel) for own in scores])
        free = budget - recent
        counts = shares(scores[:, : n - recent], free, int(0.2 * free))
        for own, count, positions in zip(scores, counts, heads):
            assert positions == choose(own, count + recent, 0, recent)


def test_the_point_of_the_search_that_was_chosen() -> None:
    """What docs/fade.md reports was measured under that name."""
    prompt = Prompt(4, 150, layers=2, kv_heads=2, group=2)
    searched = build("rows-variant", keep_ratio=0.2, min_eviction_seqlen=0, power=2, kernel_size=15)
    own = Fade(0.2, min_eviction_seqlen=0)
    assert kept(run(own, prompt), prompt) == kept(run(searched, prompt), prompt)


def test_bad_settings() -> None:
    for settings in ({"kernel_size": 4}, {"window_size": 0}, {"recent": -1}):
        with pytest.raises(InputError):
            Fade(0.2, **settings)
