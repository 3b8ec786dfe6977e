"""Splits LongBench and LongBench-E into two halves by a hash of the context: one to choose on, one
to show the choice on.

    python scripts/study/halves.py --data_dir data --out data/halves

What LongBench-E has of a data set joins LongBench's own of the same name; an example that both have
counts once. Writes ``<out>/development/longbench/<task>.jsonl`` and ``<out>/held_out/…``, and below
``<out>/no_context`` the examples of both without their contexts: what a model knows by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

import benchmarks  # noqa: E402
from benchmarks.examples import iterate_json_lines  # noqa: E402
from kvevict import files  # noqa: E402
from kvevict.command import Parser, command, user_path  # noqa: E402

HALVES = ("development", "held_out")


def half(context: str) -> str:
    """The half that every example on ``context`` belongs to."""
    return HALVES[hashlib.sha256(context.encode()).digest()[0] % 2]


@command()
def main() -> None:
    """Write both halves of what there is."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=user_path, default=ROOT / "data")
    parser.add_argument("--out", type=user_path, default=ROOT / "data" / "halves")
    parser.add_argument("--task", default="english", help="names or groups, joined by commas")
    parser.add_argument("--most", type=int, help="examples of each set and half")
    args = parser.parse_args()
    longbench, extended = benchmarks.get("longbench"), benchmarks.get("longbench_e")
    for task in longbench.resolve(args.task):
        paths = [longbench.file(args.data_dir, task)]
        if task.name in extended.tasks:
            paths.append(extended.file(args.data_dir, extended.tasks[task.name]))
        _split(task.file, [path for path in paths if path.exists()], args)


def _split(name: str, paths: list[Path], args: argparse.Namespace) -> None:
    halves: dict[str, dict[tuple[str, str], dict]] = {half: {} for half in HALVES}
    for path in paths:
        for _, row in iterate_json_lines(path):
            halves[half(row["context"])].setdefault((row["context"], row["input"]), row)
    chosen = {where: list(examples.values())[: args.most] for where, examples in halves.items()}
    both = [row for own in chosen.values() for row in own]
    chosen["no_context"] = [{**row, "context": ""} for row in both]
    for where, rows in chosen.items():
        if rows:
            file = args.out / where / "longbench" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write(file, "".join(json.dumps(row) + "\n" for row in rows))
    counts = ", ".join(f"{where} {len(examples)}" for where, examples in halves.items())
    print(f"{name}: {counts}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
