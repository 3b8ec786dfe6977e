"""From flags to what is evaluated, and where results go."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import benchmarks
from evaluation.policies import add_policy_flags, whole_numbers
from kvevict import files
from kvevict.backends import DTYPES, FRAMEWORKS
from kvevict.command import Parser, from_here, user_path
from kvevict.errors import InputError
from kvevict.methods import Policy, describe
from kvevict.models import BUILTINS, DEFAULT_MODEL

LENGTH = 4096  # tokens, where a benchmark is made to a length
ROOT = Path(__file__).resolve().parents[2]


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
        "--answer_prefix",
        choices=("on", "off"),
        default="on",
        help="let the answer begin as the benchmark has it, such as ruler's ' Answer:', or not",
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
        "--batch",
        type=_batch,
        default=1,
        help="decode so many answers side by side, of any examples and settings: a number, or auto "
        "for what memory holds; rounded otherwise",
    )
    p.add_argument(
        "--decode_together",
        action="store_true",
        help="decode all settings of a prompt as one batch: faster, rounded otherwise",
    )
    p.add_argument(
        "--nll",
        action="store_true",
        help="note beside each answer how unlikely the reference is: the negative log-likelihood "
        "of its tokens, their mean",
    )
    p.add_argument(
        "--unpack",
        action="store_true",
        help="count the bytes of quantised caches, then decode from their numbers in the model's "
        "own type: the same scores, sooner where no kernel reads so few bits, in more memory",
    )
    add_policy_flags(p)
    args = p.parse_args(argv)
    if args.start_idx < 0 or (args.stop_idx is not None and args.stop_idx <= args.start_idx):
        raise InputError("--start_idx and --stop_idx must name a range of examples")
    if args.decode_together and args.batch != 1:
        raise InputError("--batch decodes settings together as it is: leave out --decode_together")
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
        lengths = whole_numbers("length", args.length)
    return [one.at_length(length) for length in dict.fromkeys(lengths)]


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
        if args.answer_prefix != "on":
            settings["answer_prefix"] = args.answer_prefix
        if args.framework != "paddle":
            settings["framework"] = args.framework
        if args.decode_together:
            settings["decode_together"] = True
        if args.batch != 1:
            settings["batch"] = "auto" if args.batch is None else args.batch
        if args.unpack:
            settings["unpack"] = True
        if args.dtype:
            settings["dtype"] = args.dtype
        made_to = "" if length is None else f"-{length}"
        if args.model_name and len(chosen) == 1:
            yield args.model_name + made_to, settings
            return
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
        keep = f"b{policy.budget}" if policy.budget else f"{policy.keep_ratio:g}"
        keep = "" if policy.name == "full" else f"-{keep}"
        held = f"-{policy.kv_dtype}" if policy.kv_dtype else ""
        mode = "-context" if args.compress == "context" else ""
        of_policy = f"{policy.name}{keep}{held}{mode}{made_to}"
        yield f"{args.model_name or model.name}_{of_policy}_{digest}", settings


def _made() -> str:
    return ", ".join(name for name, one in benchmarks.known().items() if one.make)


def _batch(text: str) -> int | None:
    """How many answers side by side; None for as many as memory holds."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a number or auto, not {text!r}")
    return int(text)
