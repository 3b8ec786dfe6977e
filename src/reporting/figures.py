"""The figures of a group of runs: score against keep ratio, what it costs, depth against length."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

import benchmarks
from reporting.cost import cost_figure
from reporting.heatmap import heat_maps
from reporting.intervals import Estimate
from reporting.pool import Cell, Group, overall, plain, ratios_of, settings_of, task_names
from reporting.style import (
    FULL,
    FULL_DASH,
    INK,
    METHOD_STYLE,
    OTHERS,
    amount,
    axis_title,
    display,
    full_line,
    legend,
    look,
)

Curves = dict[str, dict[float, Estimate]]  # a method's estimate at each keep ratio
COLUMNS = 4  # panels side by side
STEP, SPREAD = 4, 20  # in points: how far, and over how much, equal ratios stand side by side
CROWD = 7  # lines, the full cache included, from which on bands would only cover each other


def figures(group: Group) -> Iterator[tuple[str, str, Figure]]:
    """Every figure of a group: a name for its file, what it shows, and the figure.

    Of more curves than there are methods, only one form of each method is drawn.
    """
    variants, note = {cell.method for cell in group.cells}, ""
    if len(variants) > len(METHOD_STYLE):
        group = replace(group, cells=tuple(plain(group.cells)))
        note = f". One variant of each method; the tables have all {len(variants)}"
    for name, caption, figure in _figures(group):
        yield name, caption + note, figure


def _figures(group: Group) -> Iterator[tuple[str, str, Figure]]:
    for length, cells in group.parts():
        suffix, where = (f"-{length.lower()}", f" at {length} tokens") if length else ("", "")
        crowded = _is_crowded(cells)
        caption = f"Score against the {axis_title(ratios_of(cells))}{where}"
        interval = ", with 95% confidence intervals"
        yield f"score{suffix}", caption + interval * (not crowded), score_figure(cells)
        if crowded:
            caption = f"One method at a time, the mean over tasks{where}{interval}"
            yield f"methods{suffix}", caption, methods_figure(cells)
        batched = any(cell.decoded_together for cell in cells)
        timed = "" if batched else ", and time to decode a token"
        caption = f"Cache held after prefill{timed}{where}"
        yield f"cost{suffix}", caption, cost_figure(cells)
    yield from heat_maps(group)


def score_figure(cells: list[Cell]) -> Figure:
    """A panel for each task and their mean; the full cache is the dashed line."""
    panels = [
        (benchmarks.tasks()[name].title, _curves([c for c in cells if c.task == name]))
        for name in task_names(cells)
    ]
    if len(panels) > 1:
        panels.append((f"Mean of {len(panels)} tasks", mean_curves(cells)))
    return _panels_figure(panels, cells)


def lengths_figure(group: Group) -> Figure:
    """A panel for each length: the mean over tasks."""
    panels = [(f"{length} tokens", mean_curves(cells)) for length, cells in group.parts()]
    return _panels_figure(panels, list(group.cells))


def _panels_figure(panels: list[tuple[str, Curves]], cells: list[Cell]) -> Figure:
    looks = look([method for method, _ in settings_of(cells)])
    ratios = ratios_of(cells)
    one_ratio = len(ratios) == 1
    columns = min(COLUMNS, len(panels)) if len(panels) != 5 else 3
    rows = math.ceil(len(panels) / columns)
    height = 0.7 + 0.24 * len(looks) if one_ratio else 2.3
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(4.5, 2.6 * columns), height * rows + 0.7),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid.flat)
    for ax, (title, curves) in zip(axes, panels):
        if one_ratio:
            _draw_dots(ax, curves, looks)
        else:
            _draw_curves(ax, curves, looks, bands=not _is_crowded(cells))
        ax.set_title(title)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[: len(panels)][-columns:]:
        ax.tick_params(labelbottom=True)
    if one_ratio:
        unit = "entries of each kv head" if ratios[0] > 1 else "of the cache"
        figure.supxlabel(f"score, {amount(ratios[0])} {unit} kept", size=9)
    else:
        _ratio_axis(grid[0, 0], ratios)
        figure.supxlabel(axis_title(ratios), size=9)
        figure.supylabel("score", size=9)
        legend(figure, looks)
    return figure


def methods_figure(cells: list[Cell]) -> Figure:
    """A panel for each method with its interval, the others in grey: the mean over tasks."""
    curves, looks = mean_curves(cells), look([method for method, _ in settings_of(cells)])
    methods = [method for method in looks if method in curves and method != FULL]
    columns = COLUMNS + 1
    rows = math.ceil(len(methods) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.1 * columns, 1.7 * rows + 0.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, method in zip(grid.flat, methods):
        for other in methods:
            means = [curves[other][ratio].mean for ratio in sorted(curves[other])]
            ax.plot(sorted(curves[other]), means, color=OTHERS, lw=0.8, zorder=1)
        own = {name: curves[name] for name in (FULL, method) if name in curves}
        _draw_curves(ax, own, looks, bands=True)
        ax.set_title(textwrap.fill(display(method), 25), size=9)
    for ax in grid.flat[len(methods) :]:
        ax.set_axis_off()
    for ax in list(grid.flat)[len(methods) - columns : len(methods)]:
        ax.tick_params(labelbottom=True)
    _ratio_axis(grid[0, 0], ratios_of(cells))
    figure.supxlabel(axis_title(ratios_of(cells)), size=9)
    figure.supylabel("score, mean over tasks", size=9)
    return figure


def _draw_curves(ax: Axes, curves: Curves, looks: dict[str, dict[str, Any]], bands: bool) -> None:
    if FULL in curves:
        full = curves[FULL][1.0]
        ax.axhspan(full.low, full.high, color=INK, alpha=0.05, lw=0)
        full_line(ax, full.mean)
    methods = [method for method in looks if method in curves and method != FULL]
    for place, method in enumerate(methods):
        ratios = sorted(curves[method])
        estimates = [curves[method][ratio] for ratio in ratios]
        # Side by side, or equal scores would hide one another.
        aside = (place - (len(methods) - 1) / 2) * min(STEP, SPREAD / len(methods))
        shifted = offset_copy(ax.transData, ax.figure, x=aside, units="points")
        if bands:
            low, high = [e.low for e in estimates], [e.high for e in estimates]
            style = {"color": looks[method]["color"], "alpha": 0.2, "lw": 0, "zorder": 2}
            ax.fill_between(ratios, low, high, **style, transform=shifted)
        # The two papers' methods come first and lie on top.
        style = {**looks[method], "lw": 1.5, "ms": 4.5, "mec": "white", "mew": 0.5}
        means, z = [e.mean for e in estimates], 3 + len(methods) - place
        ax.plot(ratios, means, **style, transform=shifted, zorder=z)
    ax.set_ylim(-0.03, 1.03)


def _draw_dots(ax: Axes, curves: Curves, looks: dict[str, dict[str, Any]]) -> None:
    """One keep ratio has no curve: a line for each method, its interval as a bar."""
    order = list(looks)
    for method, estimates in curves.items():
        y, (estimate,) = order.index(method), estimates.values()
        color = looks[method]["color"]
        ax.plot([estimate.low, estimate.high], [y, y], color=color, lw=5, alpha=0.3, zorder=2)
        ax.plot(estimate.mean, y, "o", color=color, ms=6, mec="white", mew=0.5, zorder=3)
        if method == FULL:
            ax.axvline(estimate.mean, color=INK, lw=1, ls=FULL_DASH, zorder=1)
    ax.set_yticks(range(len(order)), [display(method) for method in order])
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.set_xlim(-0.03, 1.03)
    ax.grid(visible=False, axis="y")


def _is_crowded(cells: list[Cell]) -> bool:
    return len(ratios_of(cells)) > 1 and len({cell.method for cell in cells}) > CROWD


def _curves(cells: list[Cell]) -> Curves:
    curves: Curves = {}
    for cell in cells:
        curves.setdefault(cell.method, {})[cell.keep] = cell.score
    return curves


def mean_curves(cells: list[Cell]) -> Curves:
    """Each method's mean over tasks at each keep ratio at which it has them all."""
    curves: Curves = {}
    for method, ratio in settings_of(cells):
        score = overall(cells, method, ratio)
        if score:
            curves.setdefault(method, {})[ratio] = score
    return curves


def _ratio_axis(ax: Axes, ratios: list[float]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ratios, [amount(ratio) for ratio in ratios])
    ax.minorticks_off()
    margin = 2**0.32
    ax.set_xlim(ratios[0] / margin, ratios[-1] * margin)
