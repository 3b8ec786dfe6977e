"""From flags and YAML files to policies."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import yaml

import benchmarks
from kvevict.command import user_path
from kvevict.errors import InputError
from kvevict.methods import METHODS, NACL, VARIANTS, Full, LaProx, Policy, build, describe
from kvevict.methods.registry import ALIASES
from kvevict.quantised import KV_DTYPES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Flags that are settings of a policy, under the release's names. Unset, the method decides.
SCALED = "; with --keep_ratio only the proportions of the three shares count"
NACL_FLAGS = {
    "proxy_tokens_ratio": "share of the prompt's last tokens whose attention scores",
    "proxy_token_keep_ratio": "share of the cache kept by score" + SCALED,
    "random_token_keep_ratio": "share of the cache drawn at random" + SCALED,
    "token_protect_ratio": "share of sinks and recent tokens, always kept" + SCALED,
    "sink_tokens": "first tokens kept, at most half of the protected share",
    "proxy_tokens": "how many of the last tokens score, in place of a share: a number, or question",
}
COMMON_FLAGS = {
    "min_eviction_seqlen": "prompts of this many tokens or fewer are left whole",
    "seed": "of the methods that draw",
    "decode_slack": "go on evicting while decoding, this many entries above the budget",
}


def add_policy_flags(p: argparse.ArgumentParser) -> None:
    """The flags that choose methods and their settings."""
    p.add_argument("--method", help=f"separated by commas: {', '.join(METHODS)}")
    p.add_argument("--enable_nacl_evict", action="store_true", help="the same as --method nacl")
    p.add_argument(
        "--keep_ratio",
        help="shares of the cache to keep, separated by commas "
        f"(default: {Policy.default_keep_ratio}; laprox {LaProx.default_keep_ratio})",
    )
    p.add_argument(
        "--budget",
        help="entries of each kv head to keep, on average, in place of a share, separated by "
        "commas; shorter prompts stay whole, and --min_eviction_seqlen is 0 unless given",
    )
    p.add_argument(
        "--config", type=user_path, help="YAML of one or more methods; flags override it"
    )
    for name, text in NACL_FLAGS.items():
        default = getattr(NACL, name)
        kind = _tokens if default is None else int if isinstance(default, int) else float
        shown = "" if default is None else f" (default: {default})"
        p.add_argument(f"--{name}", type=kind, help=f"of nacl: {text}{shown}")
    for name, text in COMMON_FLAGS.items():
        default = "the benchmark's" if name == "min_eviction_seqlen" else getattr(Full(), name)
        shown = "" if default is None else f" (default: {default})"
        p.add_argument(f"--{name}", type=int, help=text + shown)
    p.add_argument(
        "--kv_dtype",
        type=_kv_dtypes,
        help=f"quantise what is kept, of every method and the full cache: {', '.join(KV_DTYPES)}, "
        "or auto for the model's own type; several separated by commas",
    )


def chosen_policies(args: argparse.Namespace) -> list[Policy]:
    """One policy for each method, budget and seed; the full cache where no method is named.

    What a method has to say of its settings is printed.

    Raises:
        InputError: an unknown method, a malformed file, a setting out of range or of no effect, or
            methods that would keep different shares without anyone having said so.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = _chosen(args)
    for note in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {note}", file=sys.stderr)
    for policy in chosen:
        if args.compress == "context" and getattr(policy.scorer, "proxy_tokens", 0) == "question":
            raise InputError(
                f"{policy.name} scores by the question's tokens, which --compress context does not "
                "know yet"
            )
    ratios = {policy.name: policy.keep_ratio for policy in chosen if policy.name != "full"}
    by_default = (args.config, args.keep_ratio, args.budget) == (None, None, None)
    if by_default and len(set(ratios.values())) > 1:
        listed = ", ".join(f"{name} {ratio:g}" for name, ratio in ratios.items())
        raise InputError(
            f"methods differ in their default ratio ({listed}); give --keep_ratio or --budget"
        )
    return list({json.dumps(describe(policy)): policy for policy in chosen}.values())


def _chosen(args: argparse.Namespace) -> list[Policy]:
    """Every entry under the flags that fit it."""
    entries = _entries(args)
    common, nacl = _flags(args, {entry["method"] for entry in entries})
    of_benchmark = {"min_eviction_seqlen": benchmarks.get(args.benchmark).min_eviction_seqlen}
    chosen = []
    for entry in entries:
        if args.kv_dtype is not None:
            entry = {**entry, "kv_dtype": args.kv_dtype}
        if entry["method"] != "full":  # one run, whatever the flags are for the methods beside it
            of_method = nacl.keys() & _settings(entry["method"])
            flags = {**common, **{flag: nacl[flag] for flag in of_method}}
            entry = {**_without(entry, flags), **flags}
            if "budget" not in entry:  # which has a default of its own
                entry = {**of_benchmark, **entry}
        chosen += _built(entry)
    return chosen


def _flags(args: argparse.Namespace, named: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flags of every method that evicts, and those of NACL."""
    nacl = _given(args, NACL_FLAGS)
    for flag in nacl:
        if not any(flag in _settings(method) for method in named):
            raise InputError(f"--{flag} is a setting of nacl, which is not asked for")
    if {"proxy_tokens", "proxy_tokens_ratio"} <= nacl.keys():
        raise InputError("--proxy_tokens and --proxy_tokens_ratio both say which rows score")
    common = _given(args, COMMON_FLAGS)
    for flag, text in _given(args, BUDGETS).items():
        common[flag] = BUDGETS[flag](flag, text)
        if named == {"full"}:
            raise InputError(f"--{flag} needs a --method that evicts")
    return common, nacl


def read_config(path: str | Path) -> list[dict[str, Any]]:
    """A YAML file of settings: ``method`` and its settings, or a list of such mappings.

    Raises:
        InputError: no such file, or an entry that is no policy; names file and line or entry.
    """
    file = Path(path)
    if not file.exists() and not file.is_absolute() and (CONFIGS.parent / file).exists():
        file = CONFIGS.parent / file  # `configs/nacl.yaml` works from src/ too
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        where = f"{path}, line {error.problem_mark.line + 1}"
        raise InputError(f"{where}: not YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError):  # ValueError: not UTF-8, or a date like 2024-13-01
        raise InputError(f"{path} is not YAML") from None
    entries = config if isinstance(config, list) and config else [config]
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}" if entries is config else path
        if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
            raise InputError(f'{where}: no "method" is named')
        if not all(isinstance(key, str) for key in entry):
            raise InputError(f"{where}: a setting's name is not a text")
        try:
            _built(entry)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return entries


def read_policies(path: str | Path) -> list[Policy]:
    """The policies of a YAML file as it stands.

    Raises:
        InputError: as :func:`read_config`.
    """
    return [policy for entry in read_config(path) for policy in _built(entry)]


def _entries(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Methods with what the file says of them."""
    named = [] if args.method is None else [name.strip() for name in args.method.split(",")]
    if args.enable_nacl_evict and "nacl" not in named:
        named.append("nacl")
    if args.config is None:
        return [{"method": method} for method in named or ["full"]]
    entries = read_config(args.config)
    of_file = list(dict.fromkeys(entry["method"] for entry in entries))
    if named and named != of_file:
        raise InputError(f"--config is of {','.join(of_file)}, the flags ask for {','.join(named)}")
    return entries


def _built(entry: dict[str, Any]) -> list[Policy]:
    """A policy for each combination of an entry's values: a list stands for one after another."""
    lists = {key: values for key, values in entry.items() if isinstance(values, list)}
    for key, values in lists.items():
        if not values:
            raise InputError(f"setting {key!r} of {entry['method']} is an empty list")
    return [build(**{**entry, **dict(zip(lists, v))}) for v in product(*lists.values())]


def _without(entry: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """What of an entry flags leave: not the settings they give, and not another kind of budget."""
    overridden = {*flags, *(BUDGETS if BUDGETS.keys() & flags else ())}
    return {key: value for key, value in entry.items() if ALIASES.get(key, key) not in overridden}


def _settings(method: str) -> set[str]:
    """The names of a method's settings; none of a method that there is not."""
    known = {**METHODS, **VARIANTS}
    return {each.name for each in fields(known[method])} if method in known else set()


def _given(args: argparse.Namespace, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _tokens(text: str) -> int | str:
    if text == "question":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or question, not {text!r}") from None


def whole_numbers(flag: str, text: str) -> list[int]:
    """The value of a flag that takes numbers above 0."""
    values = [value.strip() for value in text.split(",")]
    for value in values:
        if not re.fullmatch("[0-9]{1,9}", value) or not int(value):
            raise InputError(f"--{flag} takes whole numbers separated by commas, not {value!r}")
    return [int(value) for value in values]


def _numbers(flag: str, text: str) -> list[float]:
    values = text.split(",")
    for value in values:
        try:
            float(value)
        except ValueError:
            raise InputError(f"--{flag} takes numbers separated by commas, not {value!r}") from None
    return [float(value) for value in values]


def _kv_dtypes(text: str) -> list[str | None]:
    """Types to quantise to, None for the model's own."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ("auto", *KV_DTYPES):
            known = ", ".join(KV_DTYPES)
            raise argparse.ArgumentTypeError(f"takes {known} or auto, not {name!r}")
    return [None if name == "auto" else name for name in names]


BUDGETS = {"keep_ratio": _numbers, "budget": whole_numbers}  # the two ways to give one
