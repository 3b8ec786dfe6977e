"""What every setting loses against the full cache, by groups of tasks, and how that compares with a
reference: the table that a method is chosen by, and the one that shows the choice.

    python scripts/study/losses.py report/development.jsonl.gz
    python scripts/study/losses.py report/held_out.jsonl.gz --reference laprox --keep_ratio 0.05

A group's loss is the mean over its tasks, the last column of losses the mean over groups, both
without weights. Intervals are of paired differences, 95%; below 0 is less loss than the reference.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from benchmarks import longbench, ruler  # noqa: E402
from kvevict.command import Parser, command, user_path  # noqa: E402
from kvevict.errors import InputError  # noqa: E402
from reporting.intervals import average, difference  # noqa: E402
from reporting.load import keep_of, read_scores  # noqa: E402

ALL = tuple(name for name in longbench.AVERAGES if name != "English")
GROUPS = {
    **{name: longbench.AVERAGES[name] for name in ALL},
    "Retrieval": ruler.NIAH,
    "Tracing": ("vt",),
    "Aggregation": ("cwe", "fwe"),
    "Questions": ("qa_1", "qa_2"),
}
Scores = dict[tuple[str, str], dict[int, float]]  # of a task and its data, by example


@command()
def main() -> None:
    """Print the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", nargs="+", type=user_path, help="scores.jsonl.gz of report.py")
    parser.add_argument("--reference", default="laprox", help="its label in the table")
    parser.add_argument("--keep_ratio", type=float, help="this one alone")
    args = parser.parse_args()
    settings = _by_setting([result for path in args.scores for result in read_scores(path)])
    full = settings.pop(("full", 1.0))
    for keep in sorted({keep for _, keep in settings}, reverse=True):
        if args.keep_ratio in (None, keep):
            own = {label: scores for (label, at), scores in settings.items() if at == keep}
            print(f"\n{keep:g} kept\n\n{_table(full, own, args.reference)}", flush=True)


def _by_setting(results: list[Any]) -> dict[tuple[str, float], Scores]:
    """Scores by label and share kept."""
    policies = [result.settings["policy"] for result in results]
    varying = _varying(policies)
    found: dict[tuple[str, float], Scores] = defaultdict(dict)
    for result, policy in zip(results, policies):
        keep = 1.0 if policy["name"] == "full" else keep_of(result)
        own = found[_label(policy, varying), keep]
        own.setdefault((result.task, result.data), {}).update(zip(result.ids, result.scores))
    return found


def _parts(policy: dict[str, Any]) -> dict[str, Any]:
    """Settings of a policy's parts, by role and name."""
    return {
        f"{role}.{name}": value
        for role in ("scorer", "allocator", "selector")
        for kind in [next(iter(policy[role]))]
        for name, value in {"": kind, **policy[role][kind]}.items()
    }


def _varying(policies: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Of each name, the settings in which its policies differ."""
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for policy in policies:
        for name, value in _parts(policy).items():
            values[policy["name"]][name].add(json.dumps(value))
    return {
        name: {setting for setting, seen in own.items() if len(seen) > 1}
        for name, own in values.items()
    }


def _label(policy: dict[str, Any], varying: dict[str, set[str]]) -> str:
    of_policy = _parts(policy)
    told = [
        f"{name.split('.')[1]}={of_policy[name]}"
        for name in sorted(varying[policy["name"]] & of_policy.keys())
        if not name.startswith("selector.") and not name.endswith(".")
    ]
    return " ".join([policy["name"], *told])


def _table(full: Scores, own: dict[str, Scores], reference: str) -> str:
    groups = {
        group: parts
        for group, tasks in GROUPS.items()
        if (parts := [part for part in full if part[0] in tasks])
    }
    if reference not in own:
        raise InputError(f"no setting is called {reference!r}: {', '.join(sorted(own))}")
    base = own[reference]
    rows = []
    for label, scores in own.items():
        losses = [
            mean(mean(_gaps(full, scores, part)) for part in parts) for parts in groups.values()
        ]
        gaps = [
            average([
                difference(_gaps(base, scores, part), list(base[part])) for part in parts
            ])
            for parts in groups.values()
        ]  # fmt: skip
        rows.append((mean(losses), losses, average(gaps), label))
    head = ["setting", *groups, "mean", f"less loss than {reference}"]
    lines = [f"| {' | '.join(head)} |", f"|:--|{'--:|' * (len(head) - 1)}"]
    for total, losses, gap, label in sorted(rows, key=lambda row: row[0]):
        cells = [label, *(f"{loss:.3f}" for loss in (*losses, total))]
        gained = (
            "" if label == reference else f"{-gap.mean:+.3f} [{-gap.high:+.3f}, {-gap.low:+.3f}]"
        )
        lines.append(f"| {' | '.join([*cells, gained])} |")
    scores = [mean(mean(full[part].values()) for part in parts) for parts in groups.values()]
    cells = ["*full cache, scores*", *(f"{one:.3f}" for one in (*scores, mean(scores))), ""]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])


def _gaps(better: Scores, scores: Scores, part: tuple[str, str]) -> list[float]:
    """How much lower the scores of a part are, an example each."""
    if part not in scores or scores[part].keys() != better[part].keys():
        raise InputError(f"the settings of {part[0]} have not all the same examples")
    return [score - scores[part][example] for example, score in better[part].items()]


if __name__ == "__main__":
    sys.exit(main())
