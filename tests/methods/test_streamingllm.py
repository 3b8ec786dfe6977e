from __future__ import annotations

import pytest

from kvevict import InputError, StreamingLLM
from tests.methods.brute import Prompt, kept, run


@pytest.mark.parametrize(
    ("sinks", "expected"), [(4, [*range(4), *range(89, 100)]), (0, [*range(85, 100)])]
)
def test_keeps_both_ends(sinks: int, expected: list[int]) -> None:
    prompt = Prompt(1, 100)
    session = run(StreamingLLM(0.15, n_sink=sinks, min_eviction_seqlen=0), prompt)
    assert kept(session, prompt) == [[expected] * 2] * 2


def test_negative_sinks() -> None:
    with pytest.raises(InputError, match="must not be negative"):
        StreamingLLM(n_sink=-1)
