"""What the cache and a decoded token cost, as bars."""

from __future__ import annotations

from statistics import mean
from typing import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from reporting.pool import Cell, ratios_of, settings_of
from reporting.style import FULL, amount, axis_title, full_line, legend, look, tint

MEASURES: dict[str, Callable[[Cell], float]] = {
    "Cache held after prefill, MiB": lambda cell: cell.cache_bytes / 2**20,
    "Decoding, ms per token": lambda cell: cell.ms_per_token,
}


def cost_figure(cells: list[Cell]) -> Figure:
    """Bars for each method and keep ratio, means over tasks; the full cache is the dashed line."""
    looks = look([method for method, _ in settings_of(cells)])
    methods = [method for method in looks if method != FULL]
    ratios = ratios_of(cells)
    width = 0.8 / max(1, len(methods))
    measures = list(MEASURES.items())
    if any(cell.decoded_together for cell in cells):
        measures.pop()  # the time of a batch is of no method alone
    with plt.rc_context({"axes.grid.axis": "y"}):
        figure, axes = plt.subplots(
            1, len(measures), figsize=(5.2 * len(measures), 3), layout="constrained", squeeze=False
        )
    for ax, (title, measure) in zip(axes[0], measures):
        means = {
            (method, ratio): mean(
                measure(cell) for cell in cells if (cell.method, cell.keep) == (method, ratio)
            )
            for method, ratio in settings_of(cells)
        }
        for place, method in enumerate(methods):
            found = [(at, means.get((method, ratio), 0)) for at, ratio in enumerate(ratios)]
            left = (place - (len(methods) - 1) / 2) * width
            ax.bar(
                [at + left for at, _ in found],
                [value for _, value in found],
                0.86 * width,
                color=tint(looks[method]),
            )
        if (FULL, 1.0) in means:
            full_line(ax, means[FULL, 1.0])
        ax.set_ylim(0, 1.12 * max(means.values()))
        ax.set_xticks(range(len(ratios)), map(amount, ratios))
        ax.set_xlabel(axis_title(ratios))
        ax.set_title(title)
    legend(figure, looks, bars=True)
    return figure
