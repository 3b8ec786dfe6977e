"""Eviction methods by name, and how to compose new ones."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from typing import Any, Callable

from ..errors import InputError
from .adakv import AdaKV
from .base import Policy
from .criticalkv import CriticalAdaKV, CriticalKV
from .full import Full
from .h2o import H2O
from .keynorm import KeyNorm
from .laprox import LaProx
from .nacl import NACL
from .nacl_variant import NACLVariant
from .pyramidkv import PyramidKV
from .random import Random
from .scissorhands import Scissorhands
from .snapkv import SnapKV
from .streamingllm import StreamingLLM
from .tova import TOVA

METHODS: dict[str, Callable[..., Policy]] = {
    "full": Full,
    "nacl": NACL,
    "laprox": LaProx,
    "h2o": H2O,
    "scissorhands": Scissorhands,
    "tova": TOVA,
    "streamingllm": StreamingLLM,
    "snapkv": SnapKV,
    "pyramidkv": PyramidKV,
    "adakv": AdaKV,
    "criticalkv": CriticalKV,
    "criticaladakv": CriticalAdaKV,
    "keynorm": KeyNorm,
    "random": Random,
}
# For studies: known to YAML files, and not offered as methods.
FORMS: dict[str, Callable[..., Policy]] = {"nacl-variant": NACLVariant}
PARTS = ("scorer", "allocator", "selector")
# Annotations of settings: the values that fit, and what to call them.
KINDS = {
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "str": (str, "a text"),
}
COMMON = ("min_eviction_seqlen", "seed", "decode_slack", "decode_drop")

__all__ = [
    "FORMS",
    "H2O",
    "METHODS",
    "NACL",
    "TOVA",
    "AdaKV",
    "CriticalAdaKV",
    "CriticalKV",
    "Full",
    "KeyNorm",
    "LaProx",
    "Policy",
    "PyramidKV",
    "Random",
    "Scissorhands",
    "SnapKV",
    "StreamingLLM",
    "build",
    "describe",
]


def build(method: str, **settings: Any) -> Policy:
    """A policy by its method's name.

    Args:
        method: a key of ``METHODS`` or ``FORMS``.
        settings: the method's arguments and the common fields of :class:`Policy`. ``scorer``,
            ``allocator`` and ``selector`` replace that part by another method's: either its name
            or ``{name: {its settings}}``.

    Raises:
        InputError: no such method or setting, or a value outside its range.
    """
    choices = {part: settings.pop(part) for part in PARTS if part in settings}
    policy = _construct(method, settings)
    name, parts = policy.name, {}
    for part, choice in choices.items():
        other, own = _choice(part, choice)
        if "keep_ratio" in inspect.signature(_method(other, f"{part}: ")).parameters:
            own = {"keep_ratio": policy.keep_ratio, **own}
        parts[part] = getattr(_construct(other, own), part)
        name += f"-{other}_{part}"
    return replace(policy, name=name, **parts)


def describe(policy: Policy) -> dict[str, Any]:
    """Everything that determines what a policy keeps, as plain values for a record."""
    record: dict[str, Any] = {}
    for item in fields(policy):
        value = getattr(policy, item.name)
        if item.name in PARTS:
            own = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
            value = {type(value).__name__: own}
        record[item.name] = value
    return record


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _method(name: Any, where: str = "") -> Callable[..., Policy]:
    known = {**METHODS, **FORMS}
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{where}unknown method {name!r}; choose among {', '.join(METHODS)}")
    return known[name]


def _choice(part: str, choice: Any) -> tuple[str, dict[str, Any]]:
    """The method that a part comes from, and its settings there."""
    name, own = choice, None
    if isinstance(choice, dict) and len(choice) == 1:
        ((name, own),) = choice.items()
    if not isinstance(name, str) or not isinstance(own, (dict, type(None))):
        raise InputError(f"{part} must be a name or {{name: {{its settings}}}}, not {choice!r}")
    return name, own or {}


def _construct(method: str, settings: dict[str, Any]) -> Policy:
    constructor = _method(method)
    own = inspect.signature(constructor).parameters.values()
    allowed = {p.name: p.annotation for p in own if p.name != "common"}
    allowed.update({f.name: f.type for f in fields(Policy) if f.name in COMMON})
    for key, value in settings.items():
        if key not in allowed:
            raise InputError(
                f"method {method!r} has no setting {key!r}; it has {', '.join(allowed)}"
            )
        kind, _, optional = allowed[key].partition(" | ")
        types, said = KINDS[kind]
        if not isinstance(value, types) and not (optional and value is None):
            raise InputError(f"setting {key!r} must be {said}, not {value!r}")
    return constructor(**settings)
