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
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from benchmarks import longbench, ruler  # noqa: E402
from kvevict.command import Parser, command, user_path  # noqa: E402
from kvevict.errors import InputError  # noqa: E402
from reporting.intervals import Estimate, average, difference  # noqa: E402
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
    parser.add_argument("--fewest", type=int, default=1, help="examples of a task that counts")
    parser.add_argument("--shared", action="store_true", help="the examples that all settings have")
    args = parser.parse_args()
    settings = _by_setting([result for path in args.scores for result in read_scores(path)])
    if args.keep_ratio:
        settings = {key: own for key, own in settings.items() if key[1] in (1.0, args.keep_ratio)}
    if args.shared:
        settings = _shared(settings)
    full = settings.pop(("full", 1.0))
    full = {part: scores for part, scores in full.items() if len(scores) >= args.fewest}
    totals: dict[str, list[float]] = defaultdict(list)
    for keep in sorted({keep for _, keep in settings} - {1.0}, reverse=True):
        own = {label: scores for (label, at), scores in settings.items() if at == keep}
        rows = _rows(full, own, args.reference)
        for row in rows:
            totals[row.label].append(row.total)
        print(f"\n{keep:g} kept\n\n{_table(full, rows)}", flush=True)
    print("\nmean over shares\n")
    for label, own in sorted(totals.items(), key=lambda item: mean(item[1])):
        print(f"{mean(own):.3f} {label}")


def _by_setting(results: list[Any]) -> dict[tuple[str, float], Scores]:
    """Scores by label and share kept."""
    policies = [result.settings["policy"] for result in results]
    usual = _usual(policies)
    found: dict[tuple[str, float], Scores] = defaultdict(dict)
    for result, policy in zip(results, policies):
        keep = 1.0 if policy["name"] == "full" else keep_of(result)
        own = found[_label(policy, usual[policy["name"]]), keep]
        own.setdefault((result.task, result.data), {}).update(zip(result.ids, result.scores))
    return found


def _shared(settings: dict[tuple[str, float], Scores]) -> dict[tuple[str, float], Scores]:
    """What every setting has a score of, where some were stopped before others."""
    first, *others = settings.values()
    common = {
        part: own.keys() & set.intersection(*(set(scores.get(part, ())) for scores in others))
        for part, own in first.items()
    }
    return {
        setting: {
            part: {i: scores[part][i] for i in sorted(ids)} for part, ids in common.items() if ids
        }
        for setting, scores in settings.items()
    }


def _parts(policy: dict[str, Any]) -> dict[str, Any]:
    """Settings of a policy's parts, by role and name."""
    return {
        f"{role}.{name}": value
        for role in ("scorer", "allocator", "selector")
        for kind in [next(iter(policy[role]))]
        for name, value in {"": kind, **policy[role][kind]}.items()
    }


def _usual(policies: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each name, the commonest value of every setting; none where most lack it."""
    values: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    for policy in policies:
        for name, value in _parts(policy).items():
            values[policy["name"]][name][json.dumps(value)] += 1
    named = Counter(policy["name"] for policy in policies)
    return {
        name: {
            setting: json.loads(seen.most_common(1)[0][0])
            for setting, seen in own.items()
            if 2 * sum(seen.values()) > named[name]
        }
        for name, own in values.items()
    }


def _label(policy: dict[str, Any], usual: dict[str, Any]) -> str:
    """The policy's name, and its settings that are not the usual ones."""
    told = [
        f"{name.split('.')[1]}={value}"
        for name, value in sorted(_parts(policy).items())
        if value != usual.get(name) and not name.startswith("selector.") and name[-1] != "."
    ]
    told += [str(policy["kv_dtype"])] if policy.get("kv_dtype") else []
    return " ".join([policy["name"], *told])


class Row(NamedTuple):
    """A setting in the table: its losses by group, their mean, and how much less that is."""

    label: str
    losses: list[float]
    total: float
    gain: Estimate


def _groups(full: Scores) -> dict[str, list[tuple[str, str]]]:
    """The parts of each group of which there is any."""
    found = {group: [p for p in full if p[0] in tasks] for group, tasks in GROUPS.items()}
    return {group: parts for group, parts in found.items() if parts}


def _rows(full: Scores, own: dict[str, Scores], reference: str) -> list[Row]:
    if reference not in own:
        raise InputError(f"no setting is called {reference!r}: {', '.join(sorted(own))}")
    groups, base, rows = _groups(full).values(), own[reference], []
    for label, scores in own.items():
        losses = [mean(mean(_gaps(full, scores, part)) for part in parts) for parts in groups]
        gains = [
            average([difference(_gaps(scores, base, part), list(base[part])) for part in parts])
            for parts in groups
        ]
        rows.append(Row(label, losses, mean(losses), average(gains)))
    return sorted(rows, key=lambda row: row.total)


def _table(full: Scores, rows: list[Row]) -> str:
    groups = _groups(full)
    head = ["setting", *groups, "mean", "less loss than the reference"]
    lines = [f"| {' | '.join(head)} |", f"|:--|{'--:|' * (len(head) - 1)}"]
    for row in rows:
        cells = [row.label, *(f"{loss:.3f}" for loss in (*row.losses, row.total))]
        cells.append(f"{row.gain.mean:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    scores = [mean(mean(full[p].values()) for p in parts) for parts in groups.values()]
    cells = ["*full cache, scores*", *(f"{one:.3f}" for one in (*scores, mean(scores))), ""]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])


def _gaps(better: Scores, scores: Scores, part: tuple[str, str]) -> list[float]:
    """How much lower the scores of a part are, an example each."""
    if part not in scores or scores[part].keys() != better[part].keys():
        raise InputError(f"the settings of {part[0]} have not all the same examples")
    return [score - scores[part][example] for example, score in better[part].items()]


if __name__ == "__main__":
    sys.exit(main())
