from __future__ import annotations

import numpy as np

from kvevict import Random
from tests.methods.brute import Prompt, kept, run


def draw(seed: int = 0, example: int = 0) -> list[list[list[int]]]:
    prompt = Prompt(0, 200)
    policy = Random(0.4, n_sink=3, recent=10, seed=seed, min_eviction_seqlen=0)
    return kept(run(policy, prompt, example), prompt)


def test_protects_both_ends_and_draws_the_rest() -> None:
    for heads in draw():
        for positions in heads:
            assert len(positions) == 80
            assert positions[:3] == [0, 1, 2]
            assert positions[-10:] == list(range(190, 200))


def test_every_head_layer_seed_and_example_draws_anew() -> None:
    draws = [
        tuple(p) for d in (draw(), draw(seed=1), draw(example=1)) for heads in d for p in heads
    ]
    assert len(set(draws)) == len(draws) == 12
    assert draw() == draw()


def test_every_candidate_is_as_likely() -> None:
    prompt = Prompt(0, 60, layers=4, kv_heads=4, group=1)
    counts = np.zeros(60)
    for seed in range(25):
        policy = Random(0.5, n_sink=0, recent=0, seed=seed, min_eviction_seqlen=0)
        for heads in kept(run(policy, prompt), prompt):
            for positions in heads:
                counts[positions] += 1
    # 400 draws of 30 in 60: mean 200, standard deviation 10.
    assert np.abs(counts - 200).max() < 45
