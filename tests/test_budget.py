from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvevict import InputError, budget

LENGTHS = st.integers(0, 10**7)
SPANS = st.integers(0, 10**5)
DECIMALS = st.decimals(0, 1, places=6)


@given(LENGTHS, DECIMALS)
def test_share_is_the_floor_of_the_decimal_product(n: int, part: Decimal) -> None:
    assert budget.Ratio(float(part)).of(n) == n * int(part * 10**6) // 10**6


@pytest.mark.parametrize(
    ("n", "part", "expected"),
    [(100, 0.29, 29), (1000, 0.57, 570), (10**6, 1e-06, 1), (3, 1, 3), (7, 0, 0), (10, 0.7, 7)],
)
def test_share_of_decimals_that_floats_miss(n: int, part: float, expected: int) -> None:
    assert budget.Ratio(part).of(n) == expected


@pytest.mark.parametrize("value", ["a", None, float("nan"), float("inf"), [0.1], "0.1", True])
def test_not_a_number(value: object) -> None:
    with pytest.raises(InputError, match="keep_ratio must be a number between 0 and 1"):
        budget.Ratio(value, "keep_ratio")


@pytest.mark.parametrize("value", [-1e-9, 1.0001, -3, 20])
def test_out_of_range(value: float) -> None:
    with pytest.raises(InputError, match="keep_ratio must lie between 0 and 1"):
        budget.Ratio(value, "keep_ratio")


@given(st.integers(1, 10**7), DECIMALS)
def test_a_head_keeps_at_least_one_and_at_most_all(n: int, keep: Decimal) -> None:
    kept = budget.per_head(n, Fraction(keep))
    assert 1 <= kept <= n
    assert kept == max(1, n * int(keep * 10**6) // 10**6)


@given(SPANS, SPANS, SPANS)
def test_protected_spans_fit_the_budget(total: int, sinks: int, recent: int) -> None:
    first, last = budget.protected(total, sinks, recent)
    assert 0 <= first <= sinks
    assert 0 <= last <= recent
    assert first + last == min(total, sinks + recent)
    assert last == min(total, recent)


@given(
    st.integers(0, 10**6),
    st.lists(st.fractions(0, 100, max_denominator=60), min_size=1, max_size=12),
)
def test_spread_adds_up_and_is_nearly_in_proportion(total: int, weights: list[Fraction]) -> None:
    assume(sum(weights) > 0)
    parts = budget.spread(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights):
        assert abs(part - total * weight / sum(weights)) < 1


@given(st.integers(0, 10**5), st.integers(1, 80), st.integers(1, 100), st.integers(0, 10**5))
def test_pyramid(average: int, layers: int, beta: int, room: int) -> None:
    cap = average + room
    parts = budget.pyramid(average, layers, beta, cap)
    assert len(parts) == layers
    assert sum(parts) == average * layers
    assert all(0 <= part <= cap for part in parts)
    # Each is within one of a line that falls, so it may stand at most one above its elder.
    assert all(lower + 1 >= higher for lower, higher in zip(parts, parts[1:]))
    if layers > 1:
        lowest = min(2 * average - Fraction(average, beta), cap)
        assert abs(parts[0] - lowest) < 1
        assert abs(parts[-1] - (2 * average - lowest)) < 1


def test_pyramid_by_hand() -> None:
    assert budget.pyramid(100, 5, 20, 1000) == [195, 147, 100, 53, 5]
    assert budget.pyramid(100, 5, 20, 120) == [120, 110, 100, 90, 80]
    assert budget.pyramid(100, 1, 20, 1000) == [100]
    assert budget.pyramid(0, 3, 20, 10) == [0, 0, 0]
