"""Methods and parts by name: found in this package, built from settings, described in records."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from ..errors import InputError
from .policy import PARTS, Composition, Policy
from .settings import Settings, is_unrecorded

# In tables and --help; a method that is not here comes after these, by its name.
ORDER = ("full", "nacl", "nacl-paper", "laprox", "fade", "h2o", "scissorhands", "tova",
         "streamingllm", "snapkv", "pyramidkv", "adakv", "criticalkv", "criticaladakv",
         "defensivekv", "layerdefensivekv", "expected_attention", "kvzip", "keydiff", "keynorm",
         "random")  # fmt: skip
# Settings by their earlier names and by those that YAML and flags have for them.
EARLIER = {
    "window": "window_size",
    "kernel": "kernel_size",
    "sinks": "n_sink",
    "alpha": "alpha_safeguard",
    "first_share": "first_stage_ratio",
}
ALIASES = {**EARLIER, "proxy": "proxy_tokens"}
# Records keep the names that they began with: runs of any version compare, and old ones go on.
RECORDED = {**{now: earlier for earlier, now in EARLIER.items()}, "LayerShared": "SharedTopK"}

Made = TypeVar("Made", bound=Settings)


def _found(contract: type[Made]) -> list[type[Made]]:
    """The classes of this package that fulfil a contract; what is not decorated is a base."""
    for module in iter_modules(import_module(__package__).__path__):
        import_module(f"{__package__}.{module.name}")
    heirs = [contract]
    for heir in heirs:
        heirs += heir.__subclasses__()
    return [
        heir
        for heir in dict.fromkeys(heirs[1:])
        if heir.__module__.startswith(__package__) and "__dataclass_fields__" in vars(heir)
    ]


def _rank(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _snake(name: str) -> str:
    """``LayerShared`` as ``layer_shared``, ``H2O`` as ``h2o``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


_POLICIES = {cls.name: cls for cls in _found(Policy) if cls.name}
METHODS = {name: _POLICIES[name] for name in sorted(_POLICIES, key=_rank) if _POLICIES[name].listed}
VARIANTS = {name: cls for name, cls in _POLICIES.items() if not cls.listed}
NAMED_PARTS = {
    role: {_snake(cls.__name__): cls for cls in _found(contract)}
    for role, contract in PARTS.items()
}


def build(method: str, **settings: Any) -> Policy:
    """A policy by its method's name.

    Args:
        method: a key of ``METHODS`` or ``VARIANTS``.
        settings: the method's fields, by their names or earlier ones. ``scorer``, ``allocator`` and
            ``selector`` replace that part: by a part itself, by a part's name (``layer_shared``),
            by that of a method that has it, or by ``{name: {its settings}}`` of either.

    Raises:
        InputError: no such method or setting, or a value outside its range.
    """
    choices = {role: settings.pop(role) for role in PARTS if role in settings}
    policy = _construct(_method(method), settings, f"method {method!r}")
    parts, name = {}, policy.name
    for role, choice in choices.items():
        parts[role], label = _part(role, choice, policy)
        name += f"-{label}"
    return Composition.of(policy, name, **parts) if parts else policy


def describe(policy: Policy) -> dict[str, Any]:
    """Everything that determines what a policy keeps, as plain values for a record."""
    record = {"name": policy.name, **_fields(policy, Policy)}
    for role in PARTS:
        part = getattr(policy, role)
        kind, values = type(part).__name__, _fields(part, type(part))
        values = {RECORDED.get(name, name): _plain(value) for name, value in values.items()}
        record[role] = {RECORDED.get(kind, kind): values}
    return record


def evicts(record: dict[str, Any]) -> bool:
    """Whether a policy keeps less than everything, as :func:`describe` records it."""
    return record["name"] != "full" and (
        record.get("budget") is not None or record["keep_ratio"] < 1
    )


def _fields(settings: Settings, cls: type[Settings]) -> dict[str, Any]:
    """The values of the fields of ``cls`` that are recorded."""
    values = {each.name: getattr(settings, each.name) for each in fields(cls)}
    return {each.name: values[each.name] for each in fields(cls)
            if not is_unrecorded(each, values[each.name])}  # fmt: skip


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _method(name: Any) -> type[Policy]:
    if not isinstance(name, str) or name not in _POLICIES:
        raise InputError(f"unknown method {name!r}; choose among {', '.join(METHODS)}")
    return _POLICIES[name]


def _part(role: str, choice: Any, policy: Policy) -> tuple[Settings, str]:
    """The part that takes a role in ``policy``, and what the policy's name says of it."""
    if isinstance(choice, PARTS[role]):
        return choice, _snake(type(choice).__name__)
    name, settings = choice, None
    if isinstance(choice, dict) and len(choice) == 1:
        ((name, settings),) = choice.items()
    if not isinstance(name, str) or not isinstance(settings, (dict, type(None))):
        raise InputError(f"{role} must be a name or {{name: {{its settings}}}}, not {choice!r}")
    settings, known = settings or {}, NAMED_PARTS[role]
    if name in known:
        return _construct(known[name], settings, f"{role} {name!r}"), name
    if name not in _POLICIES:
        raise InputError(
            f"unknown {role} {name!r}; choose among {', '.join(known)}, or a method that has it"
        )
    cls = _method(name)
    size = "keep_ratio" if policy.budget is None else "budget"
    if size in _settable(cls) and not {"keep_ratio", "budget"} & settings.keys():
        settings = {size: getattr(policy, size), **settings}  # its shares are of what is kept here
    return getattr(_construct(cls, settings, f"method {name!r}"), role), f"{name}_{role}"


def _construct(cls: type[Made], settings: dict[str, Any], what: str) -> Made:
    named: dict[str, Any] = {}
    for key, value in settings.items():
        name = key if key in _settable(cls) else ALIASES.get(key, key)
        if name not in _settable(cls):
            raise InputError(f"{what} has no setting {key!r}; it has {', '.join(_settable(cls))}")
        if name in named:
            raise InputError(f"{what}: {name!r} is given twice, also as {key!r}")
        named[name] = value
    return cls(**named)


def _settable(cls: type[Settings]) -> list[str]:
    return [each.name for each in fields(cls) if each.init]
