from __future__ import annotations

import pytest

from kvevict import InputError, PyramidKV
from tests.methods.brute import Prompt, choose, kept, pool, run


@pytest.mark.parametrize(
    ("n", "layers", "beta"), [(150, 4, 20), (97, 3, 2), (120, 2, 1), (80, 1, 20)]
)
def test_lower_layers_keep_more(n: int, layers: int, beta: int) -> None:
    prompt = Prompt(layers, n, layers=layers)
    policy = PyramidKV(0.3, window_size=8, beta=beta, min_eviction_seqlen=0)
    average = n * 3 // 10 - 8
    lowest, highest = 2 * average - average / beta, average / beta
    heads_of = kept(run(policy, prompt), prompt)
    assert sum(len(p) for heads in heads_of for p in heads) == (average + 8) * 2 * layers
    for layer, heads in enumerate(heads_of):
        linear = lowest - (lowest - highest) * layer / max(1, layers - 1) if layers > 1 else average
        own = len(heads[0])
        assert abs(own - 8 - linear) < 1
        sums = prompt.weights(layer)[:, :, -8:].sum((1, 2))
        for h, positions in enumerate(heads):
            assert positions == choose(pool(sums[h], 8, 7), own, 0, 8)


def test_budget_no_larger_than_the_window() -> None:
    prompt = Prompt(1, 100, layers=3)
    policy = PyramidKV(0.2, window_size=32, min_eviction_seqlen=0)
    assert kept(run(policy, prompt), prompt) == [[list(range(80, 100))] * 2] * 3


def test_beta_out_of_range() -> None:
    with pytest.raises(InputError, match="beta must be at least 1"):
        PyramidKV(beta=0)
