from __future__ import annotations

import numpy as np
import pytest

from kvevict import InputError, Scissorhands
from tests.methods.brute import Prompt, choose, held, kept, run


def below_mean(prompt: Prompt, layer: int, history: int) -> np.ndarray:
    """For each kv head and entry, the rows of the window that weigh it below their mean."""
    n = prompt.n
    counts = np.zeros((prompt.kv_heads, n), int)
    for h, a in enumerate(prompt.weights(layer).sum(1)):
        for i in range(max(0, n - history), n):
            counts[h, : i + 1] += a[i, : i + 1] < prompt.group / (i + 1)
    return counts


@pytest.mark.parametrize(("kv_heads", "group", "history"), [(2, 3, 400), (1, 2, 20), (3, 1, 55)])
def test_prompt_and_decoding(kv_heads: int, group: int, history: int) -> None:
    """Half of the budget goes whenever a token more than it is held. Counts tie often."""
    n, steps, budget, recent = 80, 30, 20, 5
    prompt = Prompt(group, n, kv_heads=kv_heads, group=group, more=steps)
    settings = {"history_window": history, "recent": recent, "min_eviction_seqlen": 0}
    session = run(Scissorhands(0.25, **settings), prompt)
    state = {}
    for layer, heads in enumerate(kept(session, prompt)):
        counts = below_mean(prompt, layer, history)
        for h, positions in enumerate(heads):
            assert positions == choose(-counts[h], budget, 0, recent)
            state[layer, h] = {j: counts[h, j] for j in positions}

    sizes = set()
    for step in range(n, n + steps):
        session.extend([1])
        for layer in range(prompt.layers):
            now = held(session, prompt, layer)
            for h in range(kv_heads):
                counts = {**state[layer, h], step: 0}
                positions = list(counts)
                keys = prompt.k[layer, h, positions].astype(np.float64)
                q = prompt.q[layer, h * group : (h + 1) * group, step].astype(np.float64)
                exps = np.exp(q @ keys.T / 8**0.5)
                weights = (exps / exps.sum(-1, keepdims=True)).sum(0)
                for j, weight in zip(positions, weights):
                    counts[j] += weight < group / len(positions)
                if len(positions) > budget:
                    scores = -np.array(list(counts.values()))
                    left = choose(scores, budget - budget // 2, 0, recent)
                    positions = [positions[i] for i in left]
                state[layer, h] = {j: counts[j] for j in positions}
                assert now[h] == positions
                sizes.add(len(positions))
    assert sizes == set(range(budget // 2, budget + 1))


def test_drop_out_of_range() -> None:
    with pytest.raises(InputError, match="decode_drop must lie between 0 and 1"):
        Scissorhands(decode_drop=1.5)
