"""The picture of what was kept: a panel for each method."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from reporting.kept import Kept
from reporting.style import INK, display, style_of

COLUMNS = 2
MOST_ACROSS = 640  # positions drawn side by side; more are put together


def kept_figure(kept: Kept) -> Figure:
    """For each method a map of position (across) and layer and head (down), dark where kept.

    The strip above is the share of heads that keep a position, the one on the right the share of
    positions that a layer keeps. Triangles mark the answer.
    """
    rows = math.ceil(len(kept.masks) / COLUMNS)
    with plt.rc_context({"axes.grid": False}):
        figure = plt.figure(figsize=(10.4, 2.75 * rows + 0.3), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.03, wspace=0, hspace=0)
        panels = np.ravel(figure.subfigures(rows, COLUMNS, squeeze=False))
        for panel, (method, mask) in zip(panels, kept.masks.items()):
            _panel(panel, method, mask, kept.answer)
    return figure


def _panel(panel, method: str, mask: np.ndarray, answer: list[int]) -> None:
    layers, heads, tokens = mask.shape
    color = style_of(method)[0]
    flat = mask.reshape(layers * heads, tokens)
    axes = panel.subplots(
        2,
        2,
        sharex="col",
        sharey="row",
        gridspec_kw={"width_ratios": (14, 1), "height_ratios": (1, 6), "wspace": 0, "hspace": 0},
    )
    (top, corner), (main, side) = axes
    corner.set_axis_off()

    step = math.ceil(tokens / MOST_ACROSS)
    starts = np.arange(0, tokens, step)
    binned = np.add.reduceat(flat, starts, axis=1, dtype=float)
    binned /= np.diff(np.append(starts, tokens))
    edges = np.append(starts, tokens)
    shades = LinearSegmentedColormap.from_list(method, ["white", color])
    main.pcolormesh(
        edges,
        np.arange(layers * heads + 1) / heads,
        binned,
        cmap=shades,
        vmax=1,
        vmin=0,
        rasterized=True,
    )
    main.set_ylim(layers, 0)
    main.set_xlim(0, tokens)
    main.set_xlabel("position in the prompt")
    main.set_ylabel("layer")

    top.stairs(binned.mean(axis=0), edges, fill=True, color=color, lw=0)
    top.set_ylim(0, 1)
    side.barh(np.arange(layers) + 0.5, mask.mean(axis=(1, 2)), 1.0, color=color, lw=0)
    top.set_yticks([0, 1], ["0", "1"], size=7)
    top.set_ylabel("heads\nthat keep", size=7)
    side.set_xticks([mask.mean()], [f"{mask.mean():.0%}"], size=7)
    side.set_xlabel("kept of\nthe layer", size=7)
    side.set_xlim(0, max(0.05, 1.05 * mask.mean(axis=(1, 2)).max()))
    for ax in (top, side):
        for spine in ax.spines.values():
            spine.set_visible(False)
    top.tick_params(labelbottom=False)
    side.tick_params(labelleft=False)

    note = f"{mask.mean():.1%} kept"
    if answer:
        main.plot(answer, [0] * len(answer), "v", color=INK, ms=5, clip_on=False, zorder=5, mew=0)
        note += f", the answer by {mask[:, :, answer].mean():.0%} of heads"
    top.set_title(display(method), pad=3)
    top.set_title(note, loc="right", size=8, weight="normal", pad=3)
