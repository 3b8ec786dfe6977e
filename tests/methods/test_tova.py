from __future__ import annotations

import numpy as np
import pytest

from kvevict import TOVA
from tests.methods.brute import Prompt, choose, held, kept, run


@pytest.mark.parametrize(("kv_heads", "group"), [(2, 3), (1, 4), (3, 1)])
def test_prompt_and_decoding(kv_heads: int, group: int) -> None:
    """All heads of a layer keep the same entries, by the last row; one goes for each that comes."""
    n, steps, budget = 60, 12, 15
    prompt = Prompt(group, n, kv_heads=kv_heads, group=group, more=steps)
    session = run(TOVA(0.25, min_eviction_seqlen=0), prompt)
    expected = []
    for layer, heads in enumerate(kept(session, prompt)):
        expected.append(choose(prompt.weights(layer)[:, :, -1].mean((0, 1)), budget, 0, 0))
        assert heads == [expected[layer]] * kv_heads

    for step in range(n, n + steps):
        session.extend([1])
        for layer in range(prompt.layers):
            held_now = [*expected[layer], step]
            mean = np.zeros(len(held_now))
            for head, q in enumerate(prompt.q[layer, :, step].astype(np.float64)):
                scores = prompt.k[layer, head // group, held_now].astype(np.float64) @ q / 8**0.5
                mean += np.exp(scores) / np.exp(scores).sum()
            expected[layer] = [held_now[i] for i in choose(mean, budget, 0, 0)]
            assert held(session, prompt, layer) == [expected[layer]] * kv_heads


def test_of_several_new_tokens_the_last_decides() -> None:
    n, budget = 40, 10
    prompt = Prompt(5, n, kv_heads=1, layers=1, more=3)
    session = run(TOVA(0.25, min_eviction_seqlen=0), prompt)
    positions = [*kept(session, prompt)[0][0], n, n + 1, n + 2]
    session.extend([1, 1, 1])
    scores = prompt.q[0, :, -1].astype(np.float64) @ prompt.k[0, 0, positions].T / 8**0.5
    mean = (np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)).mean(0)
    assert held(session, prompt, 0) == [[positions[i] for i in choose(mean, budget, 0, 0)]]
