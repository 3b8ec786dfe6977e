from __future__ import annotations

import pytest

from kvevict import H2O, InputError
from tests.methods.brute import Prompt, choose, grow, held, kept, run, shrink


@pytest.mark.parametrize(
    ("kv_heads", "group", "recent_share"), [(2, 3, 0.5), (1, 2, 0.25), (2, 1, 0.0)]
)
def test_prompt_and_decoding(kv_heads: int, group: int, recent_share: float) -> None:
    """Weights add up over all rows, and over the decoded ones on the entries still held."""
    n, steps, budget = 70, 15, 21
    recent = int(budget * recent_share)
    prompt = Prompt(group, n, kv_heads=kv_heads, group=group, more=steps)
    session = run(H2O(0.3, recent_share=recent_share, min_eviction_seqlen=0), prompt)
    state = []
    for layer, heads in enumerate(kept(session, prompt)):
        sums = prompt.weights(layer).sum((1, 2))
        assert heads == [choose(own, budget, 0, recent) for own in sums]
        state.append([{j: own[j] for j in head} for own, head in zip(sums, heads)])

    for step in range(n, n + steps):
        session.extend([1])
        for layer in range(prompt.layers):
            grown = grow(state[layer], prompt, layer, step)
            state[layer] = [shrink(own, budget, recent) for own in grown]
            assert held(session, prompt, layer) == [list(own) for own in state[layer]]


def test_share_out_of_range() -> None:
    with pytest.raises(InputError, match="recent_share must lie between 0 and 1"):
        H2O(recent_share=2)
