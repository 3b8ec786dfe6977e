from __future__ import annotations

import pytest

from kvevict import InputError, SnapKV
from tests.methods.brute import Prompt, choose, kept, pool, run


@pytest.mark.parametrize(
    ("n", "kv_heads", "group", "window", "kernel", "keep_ratio"),
    [
        (90, 2, 3, 8, 7, 0.3),
        (131, 1, 8, 16, 1, 0.2),
        (60, 3, 1, 32, 5, 0.6),
        (40, 2, 2, 32, 7, 0.2),
    ],
)
def test_keeps_the_best_pooled_and_the_window(n, kv_heads, group, window, kernel, keep_ratio):
    prompt = Prompt(n, n, kv_heads=kv_heads, group=group)
    sizes = {"window_size": window, "kernel_size": kernel}
    policy = SnapKV(keep_ratio, **sizes, min_eviction_seqlen=0)
    budget = int(n * keep_ratio)
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        sums = prompt.weights(layer)[:, :, -window:].sum((1, 2))
        for h, positions in enumerate(heads):
            score = pool(sums[h], window, kernel)
            assert positions == choose(score, budget, 0, min(window, budget))


@pytest.mark.parametrize("setting", [{"window_size": 0}, {"kernel_size": 4}, {"kernel_size": -1}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        SnapKV(**setting)
