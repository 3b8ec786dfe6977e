from __future__ import annotations

import numpy as np
import pytest

from kvevict import H2O, InputError
from tests.policies.brute import Prompt, choose, held, kept, run


@pytest.mark.parametrize(
    ("kv_heads", "group", "recent_share"), [(2, 3, 0.5), (1, 2, 0.25), (2, 1, 0.0)]
)
def test_prompt_and_decoding(kv_heads: int, group: int, recent_share: float) -> None:
    """Weights add up over all rows, and over the decoded ones on the entries still held."""
    n, steps, budget = 70, 15, 21
    recent = int(budget * recent_share)
    prompt = Prompt(group, n, kv_heads=kv_heads, group=group, more=steps)
    session = run(H2O(0.3, recent_share, min_eviction_seqlen=0), prompt)
    state = {}
    for layer, heads in enumerate(kept(session, prompt)):
        sums = prompt.weights(layer).sum((1, 2))
        for h, positions in enumerate(heads):
            assert positions == choose(sums[h], budget, 0, recent)
            state[layer, h] = {j: sums[h, j] for j in positions}

    for step in range(n, n + steps):
        session.extend([1])
        for layer in range(prompt.layers):
            now = held(session, prompt, layer)
            for h in range(kv_heads):
                sums = {**state[layer, h], step: 0.0}
                positions = list(sums)
                keys = prompt.k[layer, h, positions].astype(np.float64)
                for q in prompt.q[layer, h * group : (h + 1) * group, step].astype(np.float64):
                    exps = np.exp(keys @ q / 8**0.5)
                    for j, weight in zip(positions, exps / exps.sum()):
                        sums[j] += weight
                left = choose(np.array(list(sums.values())), budget, 0, recent)
                state[layer, h] = {positions[i]: sums[positions[i]] for i in left}
                assert now[h] == list(state[layer, h])


def test_share_out_of_range() -> None:
    with pytest.raises(InputError, match="recent_share must lie between 0 and 1"):
        H2O(recent_share=2)
