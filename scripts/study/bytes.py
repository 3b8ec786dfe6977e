"""Fewer entries or fewer bits: the score of every setting beside the bytes that it holds.

    python scripts/study/bytes.py report/bytes.jsonl.gz --figure figures/study/bytes.png

Bytes are a share of the full cache's in the model's own type, scales of quantised entries included;
scores are means over tasks without weights. A ★ marks the settings that none of fewer bytes beats.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from kvevict import files  # noqa: E402
from kvevict.command import Parser, command, user_path  # noqa: E402
from kvevict.errors import InputError  # noqa: E402
from reporting.intervals import Estimate, average, estimate  # noqa: E402
from reporting.load import Result, keep_of, read_scores  # noqa: E402

BITS = {None: "16", "int8": "8", "fp8": "8 (fp8)", "int4": "4", "int2": "2"}


class Row(NamedTuple):
    """A setting: its method, the share of entries it keeps and their type, its bytes and score."""

    method: str
    keep: float
    kv_dtype: str | None
    share: float
    score: Estimate


@command()
def main() -> None:
    """Print the table, and draw the figure where one is asked for."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", nargs="+", type=user_path, help="scores.jsonl.gz of report.py")
    parser.add_argument("--figure", type=user_path, help="draw it there, too")
    args = parser.parse_args()
    found = rows([result for path in args.scores for result in read_scores(path)])
    print(table(found))
    if args.figure:
        draw(found, args.figure)


def rows(results: list[Result]) -> list[Row]:
    """By bytes, the most first.

    Raises:
        InputError: the settings have not all the same tasks.
    """
    settings: dict[tuple, dict[tuple[str, str], Result]] = defaultdict(dict)
    for result in results:
        policy = result.settings["policy"]
        keep = 1.0 if policy["name"] == "full" else keep_of(result)
        key = (policy["name"], keep, policy.get("kv_dtype"))
        settings[key][result.task, result.data] = result
    if len({frozenset(own) for own in settings.values()}) > 1:
        raise InputError("the settings have not all the same tasks")
    made = []
    for key, own in settings.items():
        share = mean(one.cache_bytes / one.full_cache_bytes for one in own.values())
        made.append(
            Row(*key, share, average([estimate(one.scores, one.ids) for one in own.values()]))
        )
    return sorted(made, key=lambda row: -row.share)


def table(found: list[Row]) -> str:
    """Settings by bytes."""
    lines = ["| method | kept | bits | bytes | score | |", "|:--|--:|--:|--:|--:|:--|"]
    best = best_of(found)
    for row in found:
        score = f"{row.score.mean:.3f} [{row.score.low:.2f}, {row.score.high:.2f}]"
        lines.append(
            f"| {row.method} | {row.keep:.0%} | {BITS[row.kv_dtype]} | {row.share:.1%} | {score} | "
            f"{'★' if row in best else ''} |"
        )
    return "\n".join(lines)


def best_of(found: list[Row]) -> list[Row]:
    """Those that score higher than all of fewer or as many bytes."""
    best: list[Row] = []
    for row in sorted(found, key=lambda row: (row.share, -row.score.mean)):
        if not best or row.score.mean > best[-1].score.mean:
            best.append(row)
    return best


def draw(found: list[Row], path: Path) -> None:
    """Score over bytes: a colour a method, a line a type."""
    from matplotlib.figure import Figure

    from reporting.style import METHOD_STYLE, display

    figure = Figure((7, 4))
    axes = figure.subplots()
    lines: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in found:
        lines[row.method, row.kv_dtype].append(row)
    dashes = dict(zip(BITS, ("-", "--", "--", "-.", ":")))
    for (method, kv_dtype), own in lines.items():
        colour, marker = METHOD_STYLE[method]
        axes.plot(
            [row.share for row in own],
            [row.score.mean for row in own],
            color=colour,
            marker=marker,
            linestyle=dashes[kv_dtype],
            label=f"{display(method)}, {BITS[kv_dtype]} bits",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
    axes.set(xlabel="bytes, of the full cache's", ylabel="score")
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    files.make_directory(path.parent)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
