"""Labels for policies: the method's name, and what sets apart two variants of one method."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

from kvevict.methods import METHODS, PARTS, VARIANTS, Policy, build, describe

# Read off elsewhere: the axis, and what is pooled.
NOT_A_VARIANT = ("name", "keep_ratio", "budget", "seed")


def label_variants(policies: list[dict[str, Any]]) -> list[str]:
    """A label for each policy as recorded: ``laprox``, or ``laprox (project False)``.

    Only settings that differ among the policies of one name and from the method's default are
    spelled out, so that a method that comes in one variant has its plain name; what entries are
    quantised to always is. Shares of what is
    kept add up to 1; where one is 0, that says it, as long as no other variant has the same label.
    """
    flat = [_flatten(policy) for policy in policies]
    variants: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for policy, settings in zip(policies, flat):
        if settings not in variants[policy["name"]]:
            variants[policy["name"]].append(settings)
    labels: dict[str, list[str]] = {}
    for name, own in variants.items():
        labels[name] = [_label(name, settings, own, brief=True) for settings in own]
        if len(set(labels[name])) < len(own):
            labels[name] = [_label(name, settings, own, brief=False) for settings in own]
    return [
        labels[policy["name"]][variants[policy["name"]].index(settings)]
        for policy, settings in zip(policies, flat)
    ]


def _label(name: str, own: dict[str, Any], variants: list[dict[str, Any]], brief: bool) -> str:
    usual = _flatten(describe(build(name))) if name in {**METHODS, **VARIANTS} else variants[0]
    apart = {
        key: value
        for key, value in own.items()
        if value != usual.get(key)
        and (key == "kv_dtype" or any(value != other.get(key) for other in variants))
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
            settings.update({k: _of_kept(v, own) for k, v in own.items()})
    shortest = Policy.default_min_eviction_seqlen(policy.get("budget"))
    if settings.get("min_eviction_seqlen") == shortest:
        del settings["min_eviction_seqlen"]
    return settings


def _of_kept(value: Any, part: dict[str, Any]) -> Any:
    """A share as one of the sum of a part's shares, which is what is kept."""
    share = _share(value)
    return value if share is None else share / sum(filter(None, map(_share, part.values())))


def _share(value: Any) -> Fraction | None:
    """A share is recorded as the text of a fraction."""
    try:
        return Fraction(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _short(value: Any) -> str:
    return f"{float(value):.3g}" if isinstance(value, Fraction) else str(value)
