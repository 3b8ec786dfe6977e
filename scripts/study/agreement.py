"""Whether kvpress scores as we do: runs of eval_llama3.py beside those of kvpress_scores.py.

    python scripts/study/agreement.py --output_dir ../results

Compares a method of both at one share on the examples that both have answered. Means are over tasks
without weights, differences (ours less kvpress's) paired, with 95% intervals. An answer is the same
if it is so to the letter, white space at its ends aside.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from benchmarks.grading import grade, read_predictions  # noqa: E402
from kvevict.command import Parser, command, user_path  # noqa: E402
from kvevict.errors import InputError  # noqa: E402
from reporting.intervals import average, difference  # noqa: E402
from reporting.records import Record, read_records  # noqa: E402

NAME = "kvpress: "
LEFT_OUT = ("decode_together", "batch", "framework")  # which make the numbers, not the question


class Answer(NamedTuple):
    """An answer and its score, 0 to 1."""

    text: str
    score: float


class Side(NamedTuple):
    """A run without whose it is: its benchmark, its other settings, and the method's name."""

    benchmark: str
    settings: str
    method: str
    keep: float


Answers = dict[tuple[str, str], dict[int, Answer]]  # of a task and its data, by example


@command()
def main() -> None:
    """Print a table for each benchmark."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=user_path, required=True, help="of the runs of both")
    ours: dict[Side, Answers] = {}
    theirs: dict[Side, Answers] = {}
    for record in read_records(parser.parse_args().output_dir):
        name = record.settings["policy"]["name"]
        (theirs if name.startswith(NAME) else ours)[_side(record)] = _answers(record)
    rows: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for side in ours.keys() & theirs.keys():
        if line := _line(side, ours[side], theirs[side]):
            rows[side.benchmark].append((-side.keep, side.method, line))
    if not rows:
        raise InputError("no run of kvpress_scores.py has answered what one of ours has")
    head = ("method", "kept", "examples", "ours", "kvpress", "ours less kvpress", "same answer")
    for benchmark, lines in sorted(rows.items()):
        print(f"\n{benchmark}\n\n| {' | '.join(head)} |\n|:--{'|--:' * (len(head) - 1)}|")
        print("\n".join(line for *_, line in sorted(lines)))


def _side(record: Record) -> Side:
    settings = {key: value for key, value in record.settings.items() if key not in LEFT_OUT}
    policy = dict(settings.pop("policy"))
    name = policy.pop("name").removeprefix(NAME)
    key = json.dumps([settings, policy], sort_keys=True)
    return Side(record.benchmark.title, key, name, policy.get("budget") or policy["keep_ratio"])


def _answers(record: Record) -> Answers:
    found: Answers = {}
    for task, file in record.predictions():
        grades = grade(file, record.benchmark, task, record.name)
        predictions, _ = read_predictions(file)
        found[task.name, record.data[task.name]] = {
            one.id: Answer(one.text.strip(), score)
            for one, score in zip(predictions, grades.scores)
        }
    return found


def _line(side: Side, ours: Answers, theirs: Answers) -> str:
    """A row of the table; empty where no example has two answers."""
    pairs = [
        [(answer, theirs[part][example]) for example, answer in own.items()
         if example in theirs.get(part, {})]
        for part, own in ours.items()
    ]  # fmt: skip
    pairs = [own for own in pairs if own]
    if not pairs:
        return ""
    gaps = [[mine.score - other.score for mine, other in own] for own in pairs]
    gap = average([difference(own, range(len(own))) for own in gaps])
    means = [mean(mean(pair[of].score for pair in own) for own in pairs) for of in (0, 1)]
    every = [mine.text == other.text for own in pairs for mine, other in own]
    cells = [
        side.method,
        f"{side.keep:g}",
        f"{len(every)}",
        *(f"{one:.3f}" for one in means),
        f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
        f"{mean(every):.0%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
