from __future__ import annotations

from kvevict import Full
from tests.methods.brute import Prompt, kept, run


def test_keeps_everything() -> None:
    prompt = Prompt(1, 50)
    session = run(Full(min_eviction_seqlen=0), prompt)
    assert kept(session, prompt) == [[list(range(50))] * 2] * 2
    assert (
        session.cache.nbytes == 2 * 2 * 50 * 2 * 8 * 4
    )  # layers, heads, tokens, k and v, d, float32
