"""From flags and YAML files to policies and run directories."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import yaml

import benchmarks
from kvevict import files
from kvevict.backends import DTYPES, FRAMEWORKS
from kvevict.command import Parser, from_here, user_path
from kvevict.errors import InputError
from kvevict.methods import METHODS, NACL, VARIANTS, Full, LaProx, Policy, build, describe
from kvevict.methods.registry import ALIASES
from kvevict.models import BUILTINS, DEFAULT_MODEL

LENGTH = 4096  # tokens, where a benchmark is made to a length
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

BUDGETS = {"keep_ratio": float, "budget": int}  # the two ways to give one
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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or action.default is False
        return action.help if unset else super()._get_help_string(action)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of eval_llama3.py.

    Raises:
        InputError: an unknown flag, or a value that it cannot have.
    """
    p = Parser(
        description="Predict a benchmark with a language model whose KV cache is evicted.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    p.add_argument("--benchmark", default=benchmarks.DEFAULT, help=", ".join(benchmarks.known()))
    p.add_argument("--task", default="all", help="all, or names separated by commas")
    p.add_argument(
        "--length",
        help="tokens of prompt and answer, several separated by commas, for a benchmark that is "
        f"made to a length: {_made()} (default: {LENGTH})",
    )
    data, results = from_here(ROOT / "data"), from_here(ROOT / "results")
    p.add_argument("--data_dir", type=user_path, default=data, help="where <task>.jsonl lie")
    p.add_argument("--output_dir", type=user_path, default=results, help="where run directories go")
    p.add_argument(
        "--model_path",
        default=DEFAULT_MODEL,
        help=f"a hub id, a directory, a .gguf file, or built-in: {', '.join(BUILTINS)}",
    )
    p.add_argument("--model_name", help="name of the run directory, by default made of the rest")
    p.add_argument("--start_idx", type=int, default=0, help="first example")
    p.add_argument("--stop_idx", type=int, help="one past the last example")
    p.add_argument("--verbose", action="store_true", help="print every prediction")
    p.add_argument(
        "--framework", choices=tuple(FRAMEWORKS), default="paddle", help="what runs the model"
    )
    p.add_argument("--device", help="cpu, gpu or gpu:<n>, by default what there is")
    p.add_argument(
        "--dtype", choices=DTYPES, help="by default float32 on a CPU, bfloat16 on a GPU that has it"
    )
    p.add_argument(
        "--max_length",
        type=int,
        help="longest prompt in tokens, by default the benchmark's rule or the model's positions",
    )
    p.add_argument(
        "--chat",
        choices=("auto", "on", "off"),
        default="auto",
        help="put prompts into the model's chat template: as the benchmark has it, all, or none",
    )
    p.add_argument(
        "--no_truncation", action="store_true", help="refuse longer prompts instead of cutting them"
    )
    p.add_argument(
        "--compress",
        choices=("prompt", "context"),
        default="prompt",
        help="evict with the question in the prompt, or from the context before it is known",
    )
    p.add_argument(
        "--decode_together",
        action="store_true",
        help="decode all settings of a prompt as one batch: faster, rounded otherwise",
    )
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
    args = p.parse_args(argv)
    if args.start_idx < 0 or (args.stop_idx is not None and args.stop_idx <= args.start_idx):
        raise InputError("--start_idx and --stop_idx must name a range of examples")
    if args.max_length is None:
        args.max_length = chosen_benchmarks(args)[0].max_length
    elif args.max_length < 1:
        raise InputError(f"--max_length must be positive, not {args.max_length}")
    return args


def chosen_benchmarks(args: argparse.Namespace) -> list[benchmarks.Benchmark]:
    """The benchmark that is asked for, once for each length that it is made to.

    Raises:
        InputError: there is none of this name, or it is not made to lengths like these.
    """
    one = benchmarks.get(args.benchmark)
    if one.make is None:
        if args.length is not None:
            raise InputError(f"--length is for {_made()}, whose data are made, not for {one.name}")
        return [one]
    lengths = [LENGTH]
    if args.length is not None:
        lengths = [_whole(text) for text in args.length.split(",")]
    return [one.at_length(length) for length in dict.fromkeys(lengths)]


def policies(args: argparse.Namespace) -> list[Policy]:
    """One policy for each method, budget and seed; the full cache where no method is named.

    Raises:
        InputError: an unknown method, a malformed file, a setting out of range or of no effect, or
            methods that would keep different shares without anyone having said so.
    """
    entries = _entries(args)
    named = {entry["method"] for entry in entries}
    nacl = _given(args, NACL_FLAGS)
    for flag in nacl:
        if not any(flag in _settings(method) for method in named):
            raise InputError(f"--{flag} is a setting of nacl, which is not asked for")
    if {"proxy_tokens", "proxy_tokens_ratio"} <= nacl.keys():
        raise InputError("--proxy_tokens and --proxy_tokens_ratio both say which rows score")
    common = _given(args, COMMON_FLAGS)
    of_benchmark = {"min_eviction_seqlen": benchmarks.get(args.benchmark).min_eviction_seqlen}
    for flag, kind in BUDGETS.items():
        text = getattr(args, flag)
        if text is not None:
            common[flag] = [_number(flag, kind, one) for one in text.split(",")]
            if named == {"full"}:
                raise InputError(f"--{flag} needs a --method that evicts")
    chosen = []
    for entry in entries:
        if entry["method"] != "full":  # one run, whatever the flags are for the methods beside it
            own = {flag: nacl[flag] for flag in nacl.keys() & _settings(entry["method"])}
            flags = {**common, **own}
            entry = {**_without(entry, flags), **flags}
            if "budget" not in entry:  # which has a default of its own
                entry = {**of_benchmark, **entry}
        chosen += _built(entry)
    for policy in chosen:
        if args.compress == "context" and getattr(policy.scorer, "proxy_tokens", 0) == "question":
            raise InputError(
                f"{policy.name} scores by the question's tokens, which --compress context does not "
                "know yet"
            )
    ratios = {policy.name: policy.keep_ratio for policy in chosen if policy.name != "full"}
    if args.config is None and not BUDGETS.keys() & common and len(set(ratios.values())) > 1:
        own = ", ".join(f"{name} {ratio:g}" for name, ratio in ratios.items())
        raise InputError(
            f"methods differ in their default ratio ({own}); give --keep_ratio or --budget"
        )
    return list({json.dumps(describe(policy)): policy for policy in chosen}.values())


def runs(
    args: argparse.Namespace, chosen: list[Policy], length: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The directory and the settings of each policy's run, one after the other.

    The name is readable, and another one wherever the flags differ that make a difference.
    ``--model_name`` is taken as it stands for one policy, as the beginning for several.

    Args:
        length: that the benchmark's data are made to.
    """
    model = files.expand(args.model_path)
    model = model.resolve() if model.exists() else model
    for policy in chosen:
        settings = {
            "model": model.name,
            "model_path": str(model),
            "max_length": args.max_length,
            "truncation": not args.no_truncation,
            "compress": args.compress,
            "policy": describe(policy),
        }
        if args.benchmark != benchmarks.DEFAULT:
            settings["benchmark"] = args.benchmark
        if length is not None:
            settings["length"] = length
        if args.chat != "auto":
            settings["chat"] = args.chat
        if args.framework != "paddle":
            settings["framework"] = args.framework
        if args.decode_together:
            settings["decode_together"] = True
        if args.dtype:
            settings["dtype"] = args.dtype
        made_to = "" if length is None else f"-{length}"
        if args.model_name and len(chosen) == 1:
            yield args.model_name + made_to, settings
            return
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
        keep = f"b{policy.budget}" if policy.budget else f"{policy.keep_ratio:g}"
        keep = "" if policy.name == "full" else f"-{keep}"
        mode = "-context" if args.compress == "context" else ""
        of_policy = f"{policy.name}{keep}{mode}{made_to}"
        yield f"{args.model_name or model.name}_{of_policy}_{digest}", settings


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
    """A policy for each of an entry's budgets and seeds, which may be lists."""
    lists = {key: entry[key] for key in (*BUDGETS, "seed") if isinstance(entry.get(key), list)}
    for key, values in lists.items():
        if not values:
            raise InputError(f"setting {key!r} of {entry['method']} is an empty list")
    return [build(**{**entry, **dict(zip(lists, v))}) for v in product(*lists.values())]


def _without(entry: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """What of an entry flags leave: not the settings they give, and not another kind of budget."""
    given = {*flags, *(BUDGETS if BUDGETS.keys() & flags else ())}
    return {key: value for key, value in entry.items() if ALIASES.get(key, key) not in given}


def _settings(method: str) -> set[str]:
    """The names of a method's settings; none of a method that there is not."""
    known = {**METHODS, **VARIANTS}
    return {each.name for each in fields(known[method])} if method in known else set()


def _given(args: argparse.Namespace, names: dict[str, str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _made() -> str:
    return ", ".join(name for name, one in benchmarks.known().items() if one.make)


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text.strip()) or not int(text):
        raise InputError(f"--length takes whole numbers separated by commas, not {text!r}")
    return int(text)


def _tokens(text: str) -> int | str:
    return text if text == "question" else int(text)


def _number(flag: str, kind: type, text: str) -> float:
    try:
        return kind(text)
    except ValueError:
        whole = "whole " if kind is int else ""
        raise InputError(
            f"--{flag} takes {whole}numbers separated by commas, not {text!r}"
        ) from None
