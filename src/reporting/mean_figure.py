"""One picture of a whole study: the mean over tasks, from the full cache down to the smallest."""

from __future__ import annotations

from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from reporting.figures import mean_curves
from reporting.pool import Cell, ratios_of
from reporting.style import FAINT, FULL, amount, display, full_line, look

GAP = 0.036  # between the names at the line ends, on the axis of scores


def mean_figure(cells: list[Cell], shaded: tuple[str, ...]) -> Figure:
    """A line for each method, its name at the end; those that are ``shaded`` have their interval.

    Every line starts at the score of the full cache, which must be among ``cells``.
    """
    curves, looks = mean_curves(cells), look([cell.method for cell in cells])
    full, ratios = curves.pop(FULL)[1.0], ratios_of(cells)
    figure, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
    full_line(ax, full.mean)
    ax.text(ratios[0], full.mean + 0.01, display(FULL), ha="right")
    for method, curve in curves.items():
        at = sorted(curve, reverse=True)
        bold, z = method in shaded, 4 if method in shaded else 3
        style = {**looks[method], "lw": 2.2 if bold else 1.1, "ms": 6 if bold else 4}
        means = [full.mean, *(curve[ratio].mean for ratio in at)]
        ax.plot([1, *at], means, **style, markevery=slice(1, None), mec="white", mew=0.5, zorder=z)
        if bold:
            low = [full.low, *(curve[ratio].low for ratio in at)]
            high = [full.high, *(curve[ratio].high for ratio in at)]
            color = looks[method]["color"]
            ax.fill_between([1, *at], low, high, color=color, alpha=0.18, lw=0, zorder=2)
    # Names in the order of the line ends, and a thin line to each.
    ends = {method: curve[ratios[0]].mean for method, curve in curves.items() if ratios[0] in curve}
    names = sorted(ends, key=ends.__getitem__, reverse=True)
    for method, height in zip(names, apart([ends[name] for name in names], GAP)):
        ax.annotate(
            display(method),
            (ratios[0] / 2**0.05, ends[method]),
            (ratios[0] / 2**0.2, height),
            color=looks[method]["color"],
            weight="bold" if method in shaded else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.8, "relpos": (0, 0.5)},
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, *ratios], [amount(ratio) for ratio in [1, *ratios]])
    ax.minorticks_off()
    ax.set_xlim(1, ratios[0] / 2**0.05)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("share of the cache kept")
    ax.set_ylabel("score, mean over tasks and lengths")
    return figure


def apart(heights: list[float], gap: float) -> list[float]:
    """Falling heights, moved as little as can be (in squares) to be ``gap`` apart.

    What is too near is pooled with its neighbours (isotonic regression of ``height + rank · gap``).
    """
    pools: list[list[float]] = []
    for rank, height in enumerate(heights):
        pools.append([height + rank * gap])
        while len(pools) > 1 and mean(pools[-1]) > mean(pools[-2]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [mean(pool) for pool in pools for _ in pool]
    return [height - rank * gap for rank, height in enumerate(level)]
