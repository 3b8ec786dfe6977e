"""From flags and YAML files to policies."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from kvevict.errors import InputError
from kvevict.policies import METHODS, Policy, build, describe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# Flags that are settings of a policy, with their types. The release's names.
NACL_FLAGS = {
    "proxy_tokens_ratio": float,
    "proxy_token_keep_ratio": float,
    "random_token_keep_ratio": float,
    "token_protect_ratio": float,
    "sink_tokens": int,
}
COMMON_FLAGS = {"min_eviction_seqlen": int, "decode_slack": int, "seed": int}
HELP = {
    "proxy_tokens_ratio": "share of the prompt's last tokens whose attention scores",
    "proxy_token_keep_ratio": "share of the cache kept by score",
    "random_token_keep_ratio": "share of the cache drawn at random",
    "token_protect_ratio": "share of sinks and recent tokens, always kept",
    "sink_tokens": "first tokens kept, at most half of the protected share",
    "min_eviction_seqlen": "prompts of this many tokens or fewer are left whole",
    "decode_slack": "go on evicting while decoding, this many entries above the budget",
    "seed": "of the methods that draw",
}


def parser() -> argparse.ArgumentParser:
    """The command line of eval_llama3.py."""
    p = argparse.ArgumentParser(
        description="Predict ∞Bench with a Llama model whose KV cache is evicted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--task", default="all", help="all, or names separated by commas")
    p.add_argument("--data_dir", default="../data", help="where <task>.jsonl lie")
    p.add_argument("--output_dir", default="../results", help="where run directories go")
    p.add_argument(
        "--model_path",
        default="meta-llama/Meta-Llama-3.1-8B-Instruct",
        help="a hub id, a directory, a .gguf file, or the built-in smollm2-135m-instruct",
    )
    p.add_argument("--model_name", help="name of the run directory, by default made of the rest")
    p.add_argument("--start_idx", type=int, default=0, help="first example")
    p.add_argument("--stop_idx", type=int, help="one past the last example")
    p.add_argument("--verbose", action="store_true", help="print every prediction")
    p.add_argument("--device", help="cpu, gpu or gpu:<n>, by default what there is")
    p.add_argument("--max_length", type=int, default=127 * 1024, help="longest prompt in tokens")
    p.add_argument(
        "--no_truncation", action="store_true", help="refuse longer prompts instead of cutting them"
    )
    p.add_argument(
        "--compress",
        choices=("prompt", "context"),
        default="prompt",
        help="evict with the question in the prompt, or from the context before it is known",
    )
    p.add_argument("--method", help=f"separated by commas: {', '.join(METHODS)}")
    p.add_argument("--enable_nacl_evict", action="store_true", help="the same as --method nacl")
    p.add_argument("--keep_ratio", help="shares of the cache to keep, separated by commas")
    p.add_argument("--config", help="YAML of one method; flags override it")
    for name, kind in {**NACL_FLAGS, **COMMON_FLAGS}.items():
        p.add_argument(f"--{name}", type=kind, default=None, help=HELP[name])
    return p


def policies(args: argparse.Namespace) -> list[Policy]:
    """One policy for each method and keep ratio; the full cache where no method is named.

    Raises:
        InputError: an unknown method, a malformed file, a setting out of range.
    """
    config = read_config(args.config) if args.config else {}
    named = [name.strip() for name in args.method.split(",")] if args.method else []
    if args.enable_nacl_evict and "nacl" not in named:
        named.append("nacl")
    if not named:
        named = [config["method"]] if config else ["full"]
    if config and named != [config["method"]]:
        raise InputError(f"--config is of {config['method']}, the flags ask for {','.join(named)}")
    flags = {name: getattr(args, name) for name in COMMON_FLAGS}
    nacl = {name: getattr(args, name) for name in NACL_FLAGS}
    if any(value is not None for value in nacl.values()) and "nacl" not in named:
        given = [name for name, value in nacl.items() if value is not None]
        raise InputError(f"--{given[0]} is a setting of nacl, which is not asked for")
    chosen = []
    for method in named:
        settings = {**config, **{k: v for k, v in flags.items() if v is not None}}
        if method == "nacl":
            settings.update({k: v for k, v in nacl.items() if v is not None})
        settings.pop("method", None)
        if method == "full" or not args.keep_ratio:
            chosen.append(build(method, **settings))
            continue
        for text in args.keep_ratio.split(","):
            chosen.append(build(method, **{**settings, "keep_ratio": _number(text)}))
    return list(dict.fromkeys(chosen))


def read_config(path: str) -> dict[str, Any]:
    """A method's YAML file: ``method`` and its settings.

    Raises:
        InputError: no such file, or not such a mapping.
    """
    file = Path(path)
    if not file.exists() and not file.is_absolute() and (CONFIGS.parent / file).exists():
        file = CONFIGS.parent / file  # `configs/nacl.yaml` works from src/ too
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{path} is not YAML") from None
    if not isinstance(config, dict) or "method" not in config:
        raise InputError(f'{path} does not name its "method"')
    return config


def run_names(args: argparse.Namespace, model: str, chosen: list[Policy]) -> list[str]:
    """A directory name for each policy: readable, and different wherever settings are.

    ``--model_name`` is taken as it stands for one policy, as the beginning for several.
    """
    if args.model_name and len(chosen) == 1:
        return [args.model_name]
    names = []
    for policy in chosen:
        settings = json.dumps(settings_of(args, model, policy), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
        keep = "" if policy.name == "full" else f"-{policy.keep_ratio:g}"
        mode = "-context" if args.compress == "context" else ""
        names.append(f"{args.model_name or model}_{policy.name}{keep}{mode}_{digest}")
    return names


def settings_of(args: argparse.Namespace, model: str, policy: Policy) -> dict[str, Any]:
    """What determines the predictions of one policy."""
    return {
        "model": model,
        "max_length": args.max_length,
        "truncation": not args.no_truncation,
        "compress": args.compress,
        "policy": describe(policy),
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--keep_ratio takes numbers separated by commas, not {text!r}") from None
