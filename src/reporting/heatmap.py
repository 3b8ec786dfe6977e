"""Needle in a haystack: the score by where the answer stands and how long the context is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import benchmarks
from reporting.pool import Cell, Group, settings_of, task_names
from reporting.style import FULL, amount, display

MOST_DEPTHS, FEWEST_DEPTHS = 11, 3  # rows of a map, their centres from 0 to 1


def heat_maps(group: Group) -> Iterator[tuple[str, str, Figure]]:
    """For each task of several lengths whose depths are known: file name, caption, figure."""
    for name in task_names(list(group.cells)):
        cells = [cell for cell in group.cells if cell.task == name and cell.points]
        if len({cell.length for cell in cells}) > 1:
            title = benchmarks.tasks()[name].title
            caption = f"{title}: score by depth of the answer (down) and prompt length (across)"
            yield f"depth-{name}", caption, heat_map(cells)


def heat_map(cells: list[Cell]) -> Figure:
    """A map for each method (down) and keep ratio (across), headed by its mean score."""
    settings = settings_of(cells)
    ratios = sorted({ratio for method, ratio in settings if method != FULL}, reverse=True)
    methods = list(dict.fromkeys(method for method, _ in settings))
    lengths = {c.length: c.tokens for c in sorted(cells, key=lambda cell: cell.tokens)}
    bins = _bins(cells)
    columns = max(1, len(ratios))
    with plt.rc_context({"axes.grid": False, "axes.titleweight": "normal"}):
        figure, grid = plt.subplots(
            len(methods),
            columns,
            figsize=(max(4.0, columns * (0.9 + 0.34 * len(lengths))), 0.9 + 1.2 * len(methods)),
            squeeze=False,
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        for row, method in zip(grid, methods):
            wanted = [1.0] if method == FULL else ratios
            for ax, ratio in zip(row, wanted):
                own = [c for c in cells if (c.method, c.keep) == (method, ratio)]
                image = _map(ax, own, list(lengths), bins)
                points = [score for cell in own for _, score in cell.points]
                if points:
                    ax.set_title(f"{amount(ratio)} kept: {np.mean(points):.2f}", size=8, pad=3)
            row[0].set_ylabel(textwrap.fill(display(method), 18), weight="bold")
            for ax in row[len(wanted) :]:
                ax.set_axis_off()
        figure.colorbar(
            image, ax=grid, label="score", location="top", shrink=0.7, aspect=40, pad=0.01
        )
        figure.supxlabel("prompt length, tokens", size=9)
        figure.supylabel("depth of the answer", size=9)
    return figure


def _bins(cells: list[Cell]) -> int:
    """The most rows of which every cell has points: as many as a grid has depths."""
    for bins in range(MOST_DEPTHS, FEWEST_DEPTHS, -1):
        if all({_row(depth, bins) for depth, _ in c.points} == set(range(bins)) for c in cells):
            return bins
    return FEWEST_DEPTHS


def _row(depth: float, bins: int) -> int:
    return round(depth * (bins - 1))


def _map(ax: Axes, cells: list[Cell], lengths: list[str], bins: int):
    total, count = np.zeros((bins, len(lengths))), np.zeros((bins, len(lengths)))
    for cell in cells:
        for depth, score in cell.points:
            at = _row(depth, bins), lengths.index(cell.length)
            total[at] += score
            count[at] += 1
    with np.errstate(invalid="ignore"):
        image = ax.pcolormesh(
            total / count, cmap="cividis", vmin=0, vmax=1, ec="white", lw=0.6, rasterized=True
        )
    ax.set_xticks(np.arange(len(lengths)) + 0.5, lengths)
    ax.set_yticks([0, bins / 2, bins], ["start", "", "end"])
    ax.set_ylim(bins, 0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image
