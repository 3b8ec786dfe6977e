from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import NACL, InputError, LaProx, SnapKV, StreamingLLM
from kvevict.ops import top_k
from tests.methods.brute import Prompt, best, kept, run


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 60), st.booleans(), st.data())
def test_top_k_marks_the_largest_and_of_equals_the_lower(seed, rows, n, ties, data) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 3, (rows, n)) if ties else rng.normal(size=(rows, n))
    scores = scores.astype(np.float32)
    counts = [data.draw(st.integers(0, n)) for _ in range(rows)]
    mask = top_k(paddle.to_tensor(scores), counts).numpy()
    assert mask.dtype == bool
    assert [set(np.flatnonzero(row)) for row in mask] == [
        best(row, count, range(n)) for row, count in zip(scores, counts)
    ]


def test_top_k_with_infinities() -> None:
    inf = float("inf")
    scores = paddle.to_tensor([[inf, 1.0, inf, 2.0], [-inf, -inf, 0.0, -inf]])
    assert top_k(scores, [3, 2]).tolist() == [[True, False, True, True], [True, False, True, False]]


@pytest.mark.parametrize(
    ("n", "least", "keep_ratio", "budget"),
    [
        (2048, 2048, 0.2, 2048),
        (2049, 2048, 0.2, 409),
        (100, 0, 0.29, 29),
        (3, 0, 0.2, 1),
        (1, 0, 0.5, 1),
        (7, 0, 1.0, 7),
    ],
)
def test_budget(n: int, least: int, keep_ratio: float, budget: int) -> None:
    assert SnapKV(keep_ratio, min_eviction_seqlen=least).entries(n) == budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0}, "keep_ratio must be above 0"),
        ({"keep_ratio": -0.1}, "keep_ratio must lie between 0 and 1"),
        ({"keep_ratio": float("nan")}, "keep_ratio must be a number between 0 and 1"),
        ({"min_eviction_seqlen": -1}, "min_eviction_seqlen must not be negative"),
        ({"decode_slack": -1}, "decode_slack must not be negative"),
        ({"decode_drop": 1.1}, "decode_drop must lie between 0 and 1"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StreamingLLM(**settings)


@pytest.mark.parametrize(
    ("n", "settings", "entries"),
    [
        (4, {"budget": 5}, 4),
        (5, {"budget": 5}, 5),
        (6, {"budget": 5}, 5),
        (10**6, {"budget": 512}, 512),
        (3000, {"budget": 512, "min_eviction_seqlen": 3000}, 3000),
        (3001, {"budget": 512, "min_eviction_seqlen": 3000}, 512),
    ],
)
def test_budget_in_entries(n: int, settings: dict, entries: int) -> None:
    assert SnapKV(**settings).entries(n) == entries


def test_a_budget_is_given_in_one_way() -> None:
    message = "^a budget is given as keep_ratio or in entries as budget, not as both$"
    with pytest.raises(InputError, match=message):
        SnapKV(0.2, budget=128)
    with pytest.raises(InputError, match=message):
        SnapKV(0.2, 32)  # as window_size came second once
    for wrong in (0, -1):
        with pytest.raises(InputError, match=f"budget must be at least 1, not {wrong}"):
            SnapKV(budget=wrong)
    with pytest.raises(InputError, match=r"budget must be a whole number, not 0\.5"):
        SnapKV(budget=0.5)
    assert SnapKV().min_eviction_seqlen == 2048
    assert SnapKV(budget=128).min_eviction_seqlen == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_a_budget_keeps_what_the_share_of_as_many_entries_keeps(twenties, seed) -> None:
    """NACL's shares scale to a budget as to a ratio: here the ratio is budget / n to the digit."""
    n = 20 * twenties
    prompt = Prompt(seed, n, layers=1)
    for share in (0.05, 0.25):
        ratio = NACL(share, sink_tokens=2, min_eviction_seqlen=0)
        entries = NACL(budget=int(n * share), sink_tokens=2)
        assert kept(run(ratio, prompt), prompt) == kept(run(entries, prompt), prompt)


def test_a_model_wide_budget_in_entries() -> None:
    """Exact over the whole model, whatever its heads and layers get of it."""
    prompt = Prompt(1, 90, layers=3)
    positions = kept(run(LaProx(budget=20, window_size=5), prompt), prompt)
    counts = [len(head) for layer in positions for head in layer]
    assert sum(counts) == 20 * 2 * 3
    assert len(set(counts)) > 1
