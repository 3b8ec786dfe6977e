"""Makes RULER's data, as ``eval_llama3.py --benchmark ruler`` does for what is missing.

    python -m benchmarks.ruler --length 4096,16384 --model_path smollm2-135m-instruct
    python -m benchmarks.ruler --length 4096 --num_examples 100 --model_path DIR --task niah,vt

One file a task, ``<out_dir>/<length>/<task>.jsonl``; those that are there are left as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ruler import BENCHMARKS
from benchmarks.ruler.data import EXAMPLES, make
from benchmarks.ruler.samples import SEED
from kvevict.command import Parser, command, user_path
from kvevict.models import DEFAULT_MODEL, load_tokenizer

DATA = Path(__file__).resolve().parents[3] / "data" / "ruler"


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = _arguments(argv)
    tasks = BENCHMARKS[0].resolve(args.task)
    tokenizer = load_tokenizer(args.model_path)
    for length in args.length:
        folder = args.out_dir / str(length)
        make(folder, tasks, length, tokenizer, args.num_examples, args.seed)
        print(folder)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Make RULER's data.")
    add = parser.add_argument
    add("--length", type=_lengths, default=[4096], help="tokens, several joined by commas")
    add("--task", default="all", help="all, niah, qa, or names joined by commas")
    add("--num_examples", type=_positive, help=f"of each task, at first {EXAMPLES}")
    add("--seed", type=int, help=f"at first {SEED}")
    add("--model_path", default=DEFAULT_MODEL, help="whose tokenizer counts the tokens")
    add("--out_dir", type=user_path, default=DATA)
    return parser.parse_args(argv)


def _lengths(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.isascii() or not text.strip().isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
