"""Builds examples in ∞Bench's schema at any token length.

    python data/construct_synthetic_dataset.py --task passkey,needle --length 4096 --num_examples 50
    python data/construct_synthetic_dataset.py --task kv_retrieval --length 2000 --depth 0,0.5,1 \\
        --model_path smollm2-135m-instruct --out_dir data/kv_2000

One file a task, ``<out_dir>/<task>.jsonl``, for ``eval_llama3.py --data_dir <out_dir>``. Several
depths take turns: what the first example hides stands at each of them before anything else is
hidden, so that in whole rounds all depths hide the same things. An example is the same however many
are asked for. Lengths are exact with the tokenizer of ``--model_path``; without it they are
estimated (``benchmarks.synthetic.estimate_tokens``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from benchmarks import synthetic  # noqa: E402
from benchmarks.synthetic.generators import GENERATORS, MATH_FIND_KINDS  # noqa: E402
from benchmarks.synthetic.haystack import SPLITS  # noqa: E402
from kvevict.command import Parser, command, user_path  # noqa: E402
from kvevict.errors import InputError  # noqa: E402
from kvevict.files import make_directory, replacing  # noqa: E402

FOR_ONE_TASK = {
    "kinds": "math_find",
    "needles": "multi_needle",
    "hops": "variable_tracking",
    "calls": "code_run",
}


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = _arguments(argv)
    _check(args)
    count_tokens = _token_counter(args.model_path)
    for task in args.task:
        print(write_dataset(task, count_tokens, args))


def write_dataset(task: str, count_tokens: synthetic.CountTokens, args: argparse.Namespace) -> Path:
    """Writes one task's file, whole or not at all, and returns its path."""
    path = args.out_dir / f"{task}.jsonl"
    if path.exists() and not args.force:
        raise InputError(f"{path} is there already; --force replaces it")
    make_directory(args.out_dir)
    with replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for index in range(args.num_examples):
            hidden, at = divmod(index, len(args.depth))
            row = synthetic.make_example(
                task,
                hidden,
                args.length,
                seed=args.seed,
                split=args.split,
                depth=args.depth[at],
                haystack=args.haystack,
                count_tokens=count_tokens,
                **_options(task, args),
            )
            file.write(json.dumps({**row, "id": index}, ensure_ascii=False) + "\n")
    return path


def _options(task: str, args: argparse.Namespace) -> dict[str, object]:
    own = {flag: getattr(args, flag) for flag, owner in FOR_ONE_TASK.items() if owner == task}
    return {flag: value for flag, value in own.items() if value is not None}


def _check(args: argparse.Namespace) -> None:
    for task in args.task:
        if task not in GENERATORS:
            raise InputError(f"cannot build task {task!r}; choose from {', '.join(GENERATORS)}")
    for flag in ("num_examples", "length", "needles", "hops", "calls"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag} is {value}; it must be at least 1")
    for flag, task in FOR_ONE_TASK.items():
        if getattr(args, flag) is not None and task not in args.task:
            raise InputError(f"--{flag} is for {task}, which is not among the tasks")


def _token_counter(model_path: str | None) -> synthetic.CountTokens:
    if model_path is None:
        return synthetic.estimate_tokens
    # Imported late: only real token counts need it.
    from kvevict.models import load_tokenizer

    encode = load_tokenizer(model_path).encode
    return lambda text: len(encode(text))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _tasks(text: str) -> list[str]:
    return list(GENERATORS) if text == "all" else _names(text)


def _depths(text: str) -> list[float | str]:
    if text in synthetic.DEPTH_RULES:
        return [text]
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number, several joined by commas, uniform or random"
        ) from None


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Build synthetic examples in ∞Bench's schema.")
    add = parser.add_argument
    names = ", ".join(GENERATORS)
    add("--task", type=_tasks, required=True, help=f"all, or joined by commas: {names}")
    add("--num_examples", type=int, default=50)
    add("--length", type=int, default=4096, help="tokens of the whole prompt, at most")
    add("--model_path", help="whose tokenizer counts the tokens; by default they are estimated")
    add("--seed", type=int, default=0)
    add("--split", choices=SPLITS, default="eval", help="train and eval share no prose and no keys")
    add(
        "--depth",
        type=_depths,
        default=["uniform"],
        help="where the answer is: 0 to 1, several joined by commas (in turn), uniform or random",
    )
    add("--haystack", choices=synthetic.HAYSTACKS, help="by default the task's own")
    add("--kinds", type=_names, help="math_find: " + ", ".join(MATH_FIND_KINDS))
    add("--needles", type=int, help="multi_needle: how many (default 4)")
    add("--hops", type=int, help="variable_tracking: steps from number to answer (default 2)")
    add("--calls", type=int, help="code_run: functions to go through (default 2 to 10)")
    add("--out_dir", type=user_path, default=ROOT / "data" / "synthetic")
    add("--force", action="store_true", help="replace files that are there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
