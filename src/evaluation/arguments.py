"""From flags and YAML files to policies and run directories."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from kvevict.errors import InputError
from kvevict.models import BUILTINS, DEFAULT_MODEL
from kvevict.policies import METHODS, NACL, Policy, build, describe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# Flags that are settings of a policy, under the release's names. Unset, the method decides.
NACL_FLAGS = {
    "proxy_tokens_ratio": "share of the prompt's last tokens whose attention scores",
    "proxy_token_keep_ratio": "share of the cache kept by score",
    "random_token_keep_ratio": "share of the cache drawn at random",
    "token_protect_ratio": "share of sinks and recent tokens, always kept",
    "sink_tokens": "first tokens kept, at most half of the protected share",
}
COMMON_FLAGS = {
    "min_eviction_seqlen": "prompts of this many tokens or fewer are left whole",
    "seed": "of the methods that draw",
    "decode_slack": "go on evicting while decoding, this many entries above the budget",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or action.default is False
        return action.help if unset else super()._get_help_string(action)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of eval_llama3.py.

    Raises:
        InputError: an unknown flag, or a value that it cannot have.
    """
    p = _Parser(
        description="Predict ∞Bench with a Llama model whose KV cache is evicted.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    p.add_argument("--task", default="all", help="all, or names separated by commas")
    p.add_argument("--data_dir", default="../data", help="where <task>.jsonl lie")
    p.add_argument("--output_dir", default="../results", help="where run directories go")
    p.add_argument(
        "--model_path",
        default=DEFAULT_MODEL,
        help=f"a hub id, a directory, a .gguf file, or built-in: {', '.join(BUILTINS)}",
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
    for name, text in NACL_FLAGS.items():
        default = inspect.signature(NACL).parameters[name].default
        p.add_argument(
            f"--{name}", type=type(default), help=f"of nacl: {text} (default: {default})"
        )
    for name, text in COMMON_FLAGS.items():
        default = getattr(Policy, name)
        shown = "" if default is None else f" (default: {default})"
        p.add_argument(f"--{name}", type=int, help=text + shown)
    args = p.parse_args(argv)
    if args.start_idx < 0 or (args.stop_idx is not None and args.stop_idx <= args.start_idx):
        raise InputError("--start_idx and --stop_idx must name a range of examples")
    if args.max_length < 1:
        raise InputError(f"--max_length must be positive, not {args.max_length}")
    return args


def policies(args: argparse.Namespace) -> list[Policy]:
    """One policy for each method and keep ratio; the full cache where no method is named.

    Raises:
        InputError: an unknown method, a malformed file, a setting out of range or of no effect.
    """
    config = read_config(args.config) if args.config is not None else {}
    named = _methods(args, config)
    nacl = _given(args, NACL_FLAGS)
    if nacl and "nacl" not in named:
        raise InputError(f"--{next(iter(nacl))} is a setting of nacl, which is not asked for")
    ratios = [{}]
    if args.keep_ratio is not None:
        ratios = [{"keep_ratio": _number(text)} for text in args.keep_ratio.split(",")]
        if set(named) == {"full"}:
            raise InputError("--keep_ratio needs a --method that evicts")
    own = {k: v for k, v in config.items() if k != "method"}
    common = {**own, **_given(args, COMMON_FLAGS)}
    chosen = []
    for method in named:
        if method == "full":  # one run, whatever the flags are for the methods beside it
            chosen.append(build(method, **own))
            continue
        settings = {**common, **nacl} if method == "nacl" else common
        chosen += [build(method, **{**settings, **ratio}) for ratio in ratios]
    return list(dict.fromkeys(chosen))


def runs(args: argparse.Namespace, chosen: list[Policy]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The directory and the settings of each policy's run, one after the other.

    The name is readable, and another one wherever the settings differ. ``--model_name`` is taken
    as it stands for one policy, as the beginning for several.
    """
    path = Path(args.model_path).expanduser()
    path = path.resolve() if path.exists() else path
    for policy in chosen:
        settings = {
            "model": path.name,
            "model_path": str(path),
            "max_length": args.max_length,
            "truncation": not args.no_truncation,
            "compress": args.compress,
            "policy": describe(policy),
        }
        if args.model_name and len(chosen) == 1:
            yield args.model_name, settings
            return
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
        keep = "" if policy.name == "full" else f"-{policy.keep_ratio:g}"
        mode = "-context" if args.compress == "context" else ""
        yield f"{args.model_name or path.name}_{policy.name}{keep}{mode}_{digest}", settings


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
    if not isinstance(config, dict) or not isinstance(config.get("method"), str):
        raise InputError(f'{path} does not name its "method"')
    if not all(isinstance(key, str) for key in config):
        raise InputError(f"{path} has a setting whose name is not a text")
    return config


def _methods(args: argparse.Namespace, config: dict[str, Any]) -> list[str]:
    named = [] if args.method is None else [name.strip() for name in args.method.split(",")]
    if args.enable_nacl_evict and "nacl" not in named:
        named.append("nacl")
    if not named:
        return [config.get("method", "full")]
    if config and named != [config["method"]]:
        raise InputError(f"--config is of {config['method']}, the flags ask for {','.join(named)}")
    return named


def _given(args: argparse.Namespace, names: dict[str, str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--keep_ratio takes numbers separated by commas, not {text!r}") from None
