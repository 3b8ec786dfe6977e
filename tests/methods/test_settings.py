"""Fields of methods and parts: held to their annotations, exact where they are ratios."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, Optional, Union

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import InputError
from kvevict.budget import Ratio
from kvevict.methods.settings import Settings


@dataclass(frozen=True)
class Every(Settings):
    """A field of every kind."""

    known: ClassVar[int] = 3

    ratio: Ratio = Ratio(0.5)
    count: int = 1
    number: float = 1.0
    flag: bool = False
    text: str = "a"
    maybe: Optional[int] = None
    choice: Literal["a", "b"] = "a"
    either: Union[int, Literal["all"], None] = None
    share: Fraction = Fraction(1, 3)
    anything: Any = None
    several: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio", 0), ("ratio", 1.0), ("ratio", np.float32(0.5)), ("ratio", Fraction(1, 4)),
        ("count", -4), ("count", np.int64(3)), ("number", 3), ("number", -0.5), ("flag", True),
        ("text", ""), ("maybe", None), ("maybe", 3), ("choice", "b"), ("either", "all"),
        ("either", 4), ("either", None), ("share", 0.25), ("anything", "x"), ("several", (1, 2)),
    ],
)  # fmt: skip
def test_what_fits_is_taken(name: str, value: object) -> None:
    assert getattr(Every(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ratio", True, "ratio must be a number between 0 and 1, not True"),
        ("ratio", "0.2", "ratio must be a number between 0 and 1, not '0.2'"),
        ("ratio", float("nan"), "ratio must be a number between 0 and 1, not nan"),
        ("ratio", None, "ratio must be a number between 0 and 1, not None"),
        ("ratio", 1.5, "ratio must lie between 0 and 1, not 1.5"),
        ("count", True, "count must be a whole number, not True"),
        ("count", 2.0, "count must be a whole number, not 2.0"),
        ("count", "3", "count must be a whole number, not '3'"),
        ("count", None, "count must be a whole number, not None"),
        ("number", float("inf"), "number must be a number, not inf"),
        ("number", False, "number must be a number, not False"),
        ("flag", 1, "flag must be true or false, not 1"),
        ("text", 3, "text must be a text, not 3"),
        ("maybe", 0.5, "maybe must be a whole number, not 0.5"),
        ("choice", "c", "choice must be 'a' or 'b', not 'c'"),
        ("either", "some", "either must be a whole number or 'all', not 'some'"),
        ("share", "x", "share must be a number, not 'x'"),
        ("several", [1], "several must be a tuple, not [1]"),
        ("anything", [1], "Every cannot be hashed: unhashable type: 'list'"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as error:
        Every(**{name: value})
    assert str(error.value) == message


@dataclass
class Thawed(Settings):
    """Not frozen."""

    count: int = 1


class Bare(Every):
    """Not decorated: its own annotation is no field."""

    more: int = 2


@dataclass(frozen=True)
class Unknown(Settings):
    """An annotation that means nothing."""

    count: Nowhere = 1  # noqa: F821


@pytest.mark.parametrize("cls", [Thawed, Bare])
def test_classes_that_are_no_frozen_dataclass(cls: type) -> None:
    with pytest.raises(
        InputError, match=f"^{cls.__name__} must be a frozen dataclass: write @data"
    ):
        cls()


def test_annotations_are_evaluated() -> None:
    with pytest.raises(InputError, match="annotations of Unknown mean nothing: name 'Nowhere'"):
        Unknown()


@settings(deadline=None)
@given(st.decimals(0, 1, places=9), st.integers(0, 10**9))
def test_a_ratio_is_the_decimal_that_was_written(decimal, n: int) -> None:
    ratio = Every(ratio=float(decimal)).ratio
    assert ratio == float(decimal)
    assert ratio.exact == Fraction(decimal)
    assert ratio.of(n) == int(n * Fraction(decimal))
    for same in (replace(Every(ratio=ratio)).ratio, copy.deepcopy(ratio), Ratio(ratio)):
        assert (same, same.exact) == (ratio, ratio.exact)
    assert pickle.loads(pickle.dumps(ratio)).exact == ratio.exact
    assert json.dumps(ratio) == json.dumps(float(decimal))
