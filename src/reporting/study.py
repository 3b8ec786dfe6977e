"""A study of many settings, for a page written by hand: its figures, and tables put in their place.

The page marks a table by ``<!-- table: NAME -->`` and ``<!-- end -->``; what stands between is
replaced. Forms of a method stay out of the main figures and tables, and have tables of their own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from benchmarks.synthetic import make_example
from kvevict.errors import InputError
from reporting import intervals
from reporting.figures import Curves, lengths_figure, mean_curves, methods_figure, score_figure
from reporting.intervals import Estimate, estimate
from reporting.load import Result, keep_of
from reporting.mean_figure import mean_figure
from reporting.pool import Cell, Group, overall, plain, pool, ratios_of, settings_of
from reporting.style import FULL, amount, base, display
from reporting.tables import Table, score_cell, score_table
from reporting.variants import label_variants

BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Compared on the same examples, at each ratio that both have.
PAIRS = (
    ("tova", "laprox"),
    ("tova", "criticaladakv"),
    ("tova", "streamingllm"),
    ("laprox", "snapkv"),
    ("laprox", "adakv"),
    ("laprox", "criticaladakv"),
    ("laprox", "streamingllm"),
    ("adakv", "snapkv"),
    ("pyramidkv", "snapkv"),
    ("criticalkv", "snapkv"),
    ("criticaladakv", "adakv"),
    ("nacl", "snapkv"),
    ("nacl", "h2o"),
    ("nacl", "tova"),
    ("nacl", "streamingllm"),
    ("nacl", "random"),
)
SHADED = ("tova", "laprox", "nacl")  # whose intervals the picture of all means has room for
SEED = 1  # of the study's data, as in scripts/sweep.sh
PAIRED = (
    "Differences are paired, over the same examples, seeds pooled. The 95% interval of their mean "
    "is normal, the lengths of an example being one cluster."
)
COUNTED = "The last two columns count examples, each length as one."

#: The mean score of each example (task, data, id), seeds pooled.
Examples = dict[tuple[str, str, int], float]
#: Those of each label and keep ratio.
Scores = dict[tuple[str, float], Examples]


def refreshed(page: Path, results: list[Result]) -> str:
    """The page's text with its tables made anew.

    Raises:
        InputError: it cannot be read, has no marks or names a table that is not there, or the
            results are of several models.
    """
    made = {name: table.markdown() for name, table in tables(results).items()}
    try:
        text = page.read_text("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {page}: {error.strerror}") from None
    names = [found[1] for found in BLOCK.findall(text)]
    if not names:
        raise InputError(f"{page} marks no tables (<!-- table: NAME --> to <!-- end -->)")
    for name in names:
        if name not in made:
            raise InputError(f"{page} asks for a table {name!r}; there are {', '.join(made)}")
    return BLOCK.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", text)


def figures(results: list[Result]) -> Iterator[tuple[str, Figure]]:
    """The figures by name: all means, tasks and lengths side by side, one method at a time."""
    cells = plain(_group(results, by_length=False).cells)
    if any(cell.method == FULL for cell in cells):
        yield "mean", mean_figure(cells, SHADED)
    yield "tasks", score_figure(cells)
    yield "methods", methods_figure(cells)
    yield "lengths", lengths_figure(Group("", tuple(plain(_group(results).cells))))


def tables(results: list[Result]) -> dict[str, Table]:
    """Tables by name: ``mean``, ``methods``, ``lengths``, ``pairs``, ``places`` and ``digits`` (the
    needles by kind of answer), and one for each method with variants."""
    cells, scores = _group(results, by_length=False).cells, _scores(results)
    one_form = plain(cells)
    made = {
        "mean": _ratios_table("Score, mean over tasks and lengths", mean_curves(one_form)),
        "methods": replace(score_table(one_form), title="Score by task, all lengths", notes=[]),
        "lengths": _lengths_table(plain(_group(results).cells)),
        "pairs": _pairs_table(scores),
        "places": _ratios_table(
            "Needles that are the name of a place", _needle_curves(one_form, scores, named=True)
        ),
        "digits": _ratios_table(
            "Needles that are five digits", _needle_curves(one_form, scores, named=False)
        ),
    }
    for method in dict.fromkeys(base(cell.method) for cell in cells):
        variants = [cell for cell in cells if base(cell.method) == method]
        if any(cell.method != method for cell in variants):
            made[method] = _variants_table(method, variants, scores)
    return made


def difference(ours: Examples, others: Examples) -> tuple[Estimate, int, int] | None:
    """How much better the first scores on the examples of both; examples won and lost.

    None where they have none in common, as when a study has only begun.
    """
    gaps = {key: ours[key] - others[key] for key in ours if key in others}
    if not gaps:
        return None
    clusters = [(task, i) for task, _, i in gaps]
    won, lost = sum(gap > 0 for gap in gaps.values()), sum(gap < 0 for gap in gaps.values())
    return intervals.difference(list(gaps.values()), clusters), won, lost


def _group(results: list[Result], by_length: bool = True) -> Group:
    groups = pool(results, by_length)
    if len(groups) > 1:
        titles = "; ".join(group.title for group in groups)
        raise InputError(f"a study is of one model in one mode, not of {titles}")
    return groups[0]


def _scores(results: list[Result]) -> Scores:
    labels = label_variants([result.settings["policy"] for result in results])
    found: dict = defaultdict(lambda: defaultdict(list))
    for result, label in zip(results, labels):
        own = found[label, keep_of(result)]
        for i, score in zip(result.ids, result.scores):
            own[result.task, result.data, i].append(score)
    return {
        setting: {key: mean(values) for key, values in own.items()}
        for setting, own in found.items()
    }


def _ratios_table(title: str, curves: Curves) -> Table:
    """Methods down, the best on average first, and keep ratios across."""
    full = curves.get(FULL, {}).get(1.0)
    curves = {method: curve for method, curve in curves.items() if method != FULL}
    ratios = sorted({ratio for curve in curves.values() for ratio in curve}, reverse=True)
    order = sorted(curves, key=lambda method: -mean(one.mean for one in curves[method].values()))
    rows = [
        [display(method), *(score_cell(curves[method].get(ratio)) for ratio in ratios)]
        for method in order
    ]
    header = ["Share of the cache kept", *map(amount, ratios)]
    return Table(title, header, rows, [f"With the full cache: {score_cell(full)}."])


def _needle_curves(cells: list[Cell], scores: Scores, named: bool) -> Curves:
    """Of the needles, several and alone, whose answer is the name of a place or is not."""
    curves: Curves = {}
    for method, ratio in settings_of(cells):
        own = {
            (task, i, data): score
            for (task, data, i), score in scores[method, ratio].items()
            if task in ("needle", "multi_needle") and _is_name(task, i) == named
        }
        if own:
            score = estimate(list(own.values()), [key[:2] for key in own])
            curves.setdefault(method, {})[ratio] = score
    return curves


@cache
def _is_name(task: str, i: int) -> bool:
    """Whether the answer of an example is the name of a place, not a number.

    What is asked for is the same at every length: the example is made again, but short, and without
    the model's tokenizer.
    """
    return not make_example(task, i, 1000, seed=SEED)["answer"].isdigit()


def _lengths_table(cells: list[Cell]) -> Table:
    """Methods and keep ratios down, lengths across, means over tasks."""
    parts = Group("", tuple(cells)).parts()
    rows = [
        [
            display(method),
            amount(ratio),
            *(score_cell(overall(own, method, ratio)) for _, own in parts),
        ]
        for method, ratio in settings_of(cells)
    ]
    header = ["Method", "Kept", *(length for length, _ in parts)]
    return Table("Score by prompt length, mean over tasks", header, rows, [])


def _variants_table(method: str, cells: list[Cell], scores: Scores) -> Table:
    """The variants of a method at the ratios where it has several, each against the plain one."""
    ratios = set(ratios_of([cell for cell in cells if cell.method != method]))
    cells = [cell for cell in cells if cell.keep in ratios]
    table = score_table(cells)
    rows = []
    for row, setting in zip(table.rows, settings_of(cells)):
        plain = {} if setting[0] == method else scores.get((method, setting[1]), {})
        found = difference(scores[setting], plain)
        rows.append([*row, _signed(found[0]) if found else ""])
    header = [*table.header, f"Against {display(method)}"]
    return Table(f"Forms of {display(method)}, all lengths", header, rows, [PAIRED])


def _pairs_table(scores: Scores) -> Table:
    rows = []
    for one, other in PAIRS:
        ratios = {ratio for label, ratio in scores if label == one}
        for ratio in sorted(ratios, reverse=True):
            found = difference(scores[one, ratio], scores.get((other, ratio), {}))
            if found:
                gap, won, lost = found
                names = f"{display(one)} against {display(other)}"
                rows.append([names, amount(ratio), _signed(gap), str(won), str(lost)])
    header = ["Pair", "Kept", "Difference", "Better on", "Worse on"]
    return Table("Pairs of methods, all tasks and lengths", header, rows, [PAIRED, COUNTED])


def _signed(gap: Estimate) -> str:
    return f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
