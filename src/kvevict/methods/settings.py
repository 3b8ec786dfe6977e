"""Settings of methods and of their parts: frozen dataclasses whose fields are checked."""

from __future__ import annotations

import types
from dataclasses import Field, field, fields
from fractions import Fraction
from functools import cache
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..budget import Ratio
from ..errors import InputError

UNIONS = (Union, getattr(types, "UnionType", Union))  # a | b is the second, from Python 3.10 on
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Fraction: "a number",
    str: "a text",
    Ratio: "a number between 0 and 1",
}


class Settings:
    """Base of policies and of their parts.

    A subclass is a frozen dataclass, ``@dataclass(frozen=True)``, whose fields are the paper's
    hyper-parameters. Each value is held to its field's annotation when an object is made: ``int``,
    ``float``, ``bool``, ``str``, ``Literal[…]``, :class:`~kvevict.budget.Ratio` (which numbers
    between 0 and 1 become) or a class of one's own. Annotations are evaluated: where Python 3.9
    matters, ``Optional[int]`` is to be written for ``int | None``. What else a value must fulfil
    is checked in ``__post_init__``, after ``super().__post_init__()``.

    Raises:
        InputError: a value that does not fit, or a class that is no such dataclass.
    """

    def __post_init__(self) -> None:
        check_frozen(type(self))
        for each in fields(self):
            hint = _hints(type(self))[each.name]
            value = _fitted(getattr(self, each.name), hint, each.name)
            object.__setattr__(self, each.name, value)
        try:
            hash(self)
        except TypeError as error:
            raise InputError(f"{type(self).__name__} cannot be hashed: {error}") from None


def later(default: Any) -> Any:
    """A field that records of earlier versions lack: recorded where it is not the default."""
    return field(default=default, metadata={"later": True})


def is_unrecorded(each: Field, value: Any) -> bool:
    """Whether a record leaves out a field that has this value."""
    return "later" in each.metadata and value == each.default


def check_frozen(cls: type) -> None:
    """Raise InputError unless ``cls`` itself is decorated as a frozen dataclass."""
    if "__dataclass_fields__" not in vars(cls) or not cls.__dataclass_params__.frozen:
        raise InputError(
            f"{cls.__name__} must be a frozen dataclass: write @dataclass(frozen=True) above it"
        )


def _fitted(value: Any, hint: Any, name: str) -> Any:
    """``value`` as a field annotated ``hint`` holds it."""
    members = get_args(hint) if get_origin(hint) in UNIONS else (hint,)
    if value is not None and Ratio in members:
        return Ratio(value, name)
    for member in members:
        if _fits(value, member):
            return Fraction(str(value)) if member is Fraction else value
    known = " or ".join(_described(member) for member in members if member is not type(None))
    raise InputError(f"{name} must be {known}, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if kind in (int, float, Fraction):
        numbers = Integral if kind is int else Real
        return isinstance(value, numbers) and not isinstance(value, bool) and isfinite(value)
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    name = getattr(hint, "__name__", str(hint))
    return KINDS.get(hint) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


@cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except (NameError, TypeError) as error:
        raise InputError(f"the annotations of {cls.__name__} mean nothing: {error}") from None
