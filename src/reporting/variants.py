"""Labels for policies: the method's name, and what sets apart two forms of one method."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

from kvevict.methods import METHODS, PARTS, VARIANTS, build, describe

# Read off elsewhere: the axis, and what is pooled.
NOT_A_VARIANT = ("name", "keep_ratio", "seed")


def label_variants(policies: list[dict[str, Any]]) -> list[str]:
    """A label for each policy as recorded: ``laprox``, or ``laprox (project False)``.

    Only settings that differ among the policies of one name and from the method's default are
    spelled out, so that a method that comes in one form has its plain name. Shares of what is kept
    add up to 1; where one is 0, that says it, as long as no other form has the same label.
    """
    flat = [_flatten(policy) for policy in policies]
    forms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for policy, settings in zip(policies, flat):
        if settings not in forms[policy["name"]]:
            forms[policy["name"]].append(settings)
    labels: dict[str, list[str]] = {}
    for name, own in forms.items():
        labels[name] = [_label(name, form, own, brief=True) for form in own]
        if len(set(labels[name])) < len(own):
            labels[name] = [_label(name, form, own, brief=False) for form in own]
    return [
        labels[policy["name"]][forms[policy["name"]].index(settings)]
        for policy, settings in zip(policies, flat)
    ]


def _label(name: str, own: dict[str, Any], forms: list[dict[str, Any]], brief: bool) -> str:
    usual = _flatten(describe(build(name))) if name in {**METHODS, **VARIANTS} else forms[0]
    apart = {
        key: value
        for key, value in own.items()
        if value != usual.get(key) and any(value != other.get(key) for other in forms)
    }
    shares = {key: value for key, value in apart.items() if isinstance(value, Fraction)}
    if brief and 0 in shares.values():
        apart = {key: value for key, value in apart.items() if shares.get(key, 0) == 0}
    return f"{name} ({', '.join(f'{k} {_short(v)}' for k, v in apart.items())})" if apart else name


def _flatten(policy: dict[str, Any]) -> dict[str, Any]:
    """Settings by name. Shares of the prompt become shares of what is kept."""
    settings = {k: v for k, v in policy.items() if k not in (*NOT_A_VARIANT, *PARTS)}
    for part in PARTS:
        for kind, own in policy.get(part, {}).items():
            settings[part] = kind
            settings.update({k: _of_kept(v, policy["keep_ratio"]) for k, v in own.items()})
    return settings


def _of_kept(value: Any, keep_ratio: float) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return Fraction(value) / Fraction(str(keep_ratio))
    except ValueError:
        return value


def _short(value: Any) -> str:
    return f"{float(value):.3g}" if isinstance(value, Fraction) else str(value)
