from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import NACLPaper, build
from kvevict.engine import prefill
from kvevict.methods.nacl_paper import shares
from tests.methods.brute import Prompt, best, kept, run

PERCENT = {  # kept: protected, by score, drawn; rows that score
    "10": ("1", "2", "7", "3"),
    "20": ("2", "6", "12", "18"),
    "30": ("1.5", "10.5", "18", "20"),
    # Between two rows, by hand.
    "15": ("1.5", "4", "9.5", "10.5"),
    "25": ("1.75", "8.25", "15", "19"),
    "12.5": ("1.25", "3", "8.25", "6.75"),
    # Beyond them: the nearest row's proportions and rows.
    "5": ("0.5", "1", "3.5", "3"),
    "60": ("3", "21", "36", "20"),
}


@pytest.mark.parametrize("percent", PERCENT)
def test_the_papers_rows_and_what_is_between(percent: str) -> None:
    expected = tuple(Fraction(value) / 100 for value in PERCENT[percent])
    assert shares(Fraction(percent) / 100) == expected


@settings(deadline=None)
@given(st.fractions(Fraction(1, 10**6), 1))
def test_the_shares_add_up_to_what_is_kept(keep: Fraction) -> None:
    *parts, rows = shares(keep)
    assert sum(parts) == keep
    assert min(parts) >= 0
    assert Fraction("0.03") <= rows <= Fraction("0.2")


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        # Of 200 tokens: protected, by score and the rest drawn, rows that score.
        ({"keep_ratio": 0.2}, (4, 12, 24, 36)),
        ({"keep_ratio": 0.1}, (2, 4, 14, 6)),
        ({"budget": 60}, (3, 21, 36, 40)),
        ({"budget": 60, "proxy_tokens": 5}, (3, 21, 36, 5)),
        ({"budget": 60, "proxy_tokens": "question"}, (3, 21, 36, 9)),
        ({"budget": 10}, (1, 2, 7, 6)),
    ],
)
def test_what_it_keeps(settings: dict, counts: tuple[int, ...]) -> None:
    protected, by_score, drawn, rows = counts
    prompt = Prompt(2, 200)
    policy = NACLPaper(**settings, min_eviction_seqlen=0)
    (session,) = prefill(prompt, [1] * 200, [policy], record=True, question_tokens=9)
    sinks = protected // 2
    recent = protected - sinks
    for layer, heads in enumerate(kept(session, prompt)):
        sums = prompt.weights(layer)[:, :, -rows:].sum((1, 2))
        for own, positions in zip(sums, heads):
            chosen = best(own, by_score, range(sinks, 200 - recent))
            assert {*range(sinks), *range(200 - recent, 200), *chosen} <= set(positions)
            assert len(positions) == protected + by_score + drawn


def test_another_seed_draws_anew() -> None:
    prompt = Prompt(2, 200)
    one, other = (
        kept(run(NACLPaper(0.2, seed=seed, min_eviction_seqlen=0), prompt), prompt)
        for seed in (0, 1)
    )
    assert one != other


@pytest.mark.parametrize("ratio", [0.05, 0.31, 1.0])
def test_it_says_where_the_paper_says_nothing(ratio: float) -> None:
    with pytest.warns(UserWarning, match=f"keeps 10 to 30%; {ratio:g} takes the"):
        build("nacl-paper", keep_ratio=ratio)


@pytest.mark.filterwarnings("error")
def test_within_the_papers_range_it_says_nothing() -> None:
    for ratio in (0.1, 0.15, 0.2, 0.3):
        build("nacl-paper", keep_ratio=ratio)
