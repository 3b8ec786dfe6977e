"""How methods look everywhere: colour, marker, order. And the look of every figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kvevict.methods import METHODS, PARTS

FULL = "full"
# Text; grid and frame; lines that are there for comparison only.
INK, FAINT, OTHERS = "#24292f", "#d0d7de", "#b6bec8"
FULL_DASH = (0, (5, 2))
# Hues stay apart under red- and green-blindness for the methods most often shown together (Okabe
# and Ito's palette); a dozen cannot on hue alone, so each has a marker of its own as well.
METHOD_STYLE = {
    FULL: (INK, "_"),
    "nacl": ("#D55E00", "o"),
    "nacl-paper": ("#8C3B00", "8"),
    "laprox": ("#0072B2", "s"),
    "snapkv": ("#009E73", "^"),
    "h2o": ("#E69F00", "D"),
    "streamingllm": ("#CC79A7", "v"),
    "pyramidkv": ("#6060F0", "P"),
    "adakv": ("#33BBEE", "<"),
    "criticalkv": ("#8E4EC6", ">"),
    "criticaladakv": ("#66A61E", "p"),
    "tova": ("#B02A2A", "X"),
    "scissorhands": ("#A0722D", "d"),
    "defensivekv": ("#A05A9C", "*"),
    "layerdefensivekv": ("#7A2E73", "H"),
    "expected_attention": ("#1F9EA8", "1"),
    "kvzip": ("#B8860B", "2"),
    "fade": ("#B8336A", "D"),
    "keydiff": ("#4F7F3F", "3"),
    "keynorm": ("#6B7785", "h"),
    "random": ("#9AA0A6", "."),
}
# Of methods that are not listed here, by turns.
SPARE_STYLES = (("#56606E", "x"), ("#A05195", "|"), ("#2F4B7C", "+"), ("#7A8F00", "4"))
NAMES = {
    FULL: "full cache",
    "nacl": "NACL",
    "nacl-paper": "NACL (paper)",
    "laprox": "LaProx",
    "fade": "Fade",
    "snapkv": "SnapKV",
    "h2o": "H2O",
    "streamingllm": "StreamingLLM",
    "pyramidkv": "PyramidKV",
    "adakv": "Ada-KV",
    "criticalkv": "CriticalKV",
    "criticaladakv": "CriticalAda-KV",
    "tova": "TOVA",
    "scissorhands": "Scissorhands",
    "defensivekv": "DefensiveKV",
    "layerdefensivekv": "Layer-DefensiveKV",
    "expected_attention": "Expected attention",
    "kvzip": "KVzip",
    "keydiff": "KeyDiff",
    "keynorm": "Key norm",
    "random": "Random",
}
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2)), (0, (2, 2)))
matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "kvevict",
        "savefig.dpi": 160,
    }
)


def base(method: str) -> str:
    """The method that a label such as ``laprox (project False)`` is a variant of."""
    name = method.partition(" (")[0]
    return name if name in METHOD_STYLE else name.partition("-")[0]


def display(method: str) -> str:
    """The label with the method's name as its paper writes it.

    ``laprox-adakv_allocator`` becomes ``LaProx, Ada-KV's allocator``.
    """
    name, opening, rest = method.partition(" (")
    shown = [_name(base(name))]
    for part in name[len(base(name)) :].split("-")[1:]:
        other, _, role = part.rpartition("_")
        shown.append(f"{_name(other)}'s {role}" if role in PARTS else part.replace("_", " "))
    return ", ".join(shown) + opening + rest


def _name(method: str) -> str:
    """As its paper writes it, or as its class is called."""
    return NAMES.get(method) or (METHODS[method].__name__ if method in METHODS else method)


def style_of(method: str) -> tuple[str, str]:
    """Colour and marker of the method that a label is a variant of."""
    if base(method) in METHOD_STYLE:
        return METHOD_STYLE[base(method)]
    others = [name for name in METHODS if base(name) not in METHOD_STYLE]
    turn = others.index(base(method)) if base(method) in others else 0
    return SPARE_STYLES[turn % len(SPARE_STYLES)]


def rank(method: str) -> tuple[int, str]:
    """The full cache first, the methods in the order of the palette, others by name; variants
    behind."""
    order = list(METHOD_STYLE)
    return (order.index(base(method)) if base(method) in order else len(order), method)


def look(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Matplotlib's ``color``, ``marker`` and ``linestyle`` of each method, by label.

    The colour is the method's own in every figure; its variants differ in their dashes.
    """
    looks: dict[str, dict[str, Any]] = {}
    for method in sorted(set(methods), key=rank):
        color, marker = style_of(method)
        variants = sum(base(other) == base(method) for other in looks)
        dash = DASHES[variants % len(DASHES)]
        looks[method] = {"color": color, "marker": marker, "linestyle": dash}
    return looks


def tint(own: dict[str, Any]) -> tuple[float, ...]:
    """The colour of a method's bars. They have no dashes: its variants are paler and paler."""
    strength = 0.6 ** DASHES.index(own["linestyle"])
    return tuple(1 - strength * (1 - part) for part in to_rgb(own["color"]))


def full_line(ax: Axes, value: float) -> None:
    """The full cache, as a line across."""
    ax.axhline(value, color=INK, lw=1, ls=FULL_DASH)


def legend(figure: Figure, looks: dict[str, dict[str, Any]], bars: bool = False) -> None:
    """One legend above all panels of a figure, for lines or for bars; a long one adds height."""
    handles = []
    for method, own in looks.items():
        style = {**own, "lw": 1.5, "ms": 5}
        if method == FULL:
            style = {"color": INK, "lw": 1, "ls": FULL_DASH}
        elif bars:
            style = {"color": tint(own), "lw": 0, "marker": "s", "ms": 7}
        handles.append(Line2D([], [], label=display(method), **style))
    letters = 14 * figure.get_figwidth()  # that fit side by side
    columns = max(1, int(letters / (7 + max(len(display(method)) for method in looks))))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, rows - 3))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=-(-len(handles) // rows),
        handlelength=2.6,
    )


def amount(keep: float) -> str:
    """How much was asked for, in figures: a share of the cache, or entries where above 1."""
    return f"{100 * keep:g}%" if keep <= 1 else f"{keep:g}"


def axis_title(keeps: Iterable[float]) -> str:
    """What such figures are."""
    entries = any(keep > 1 for keep in keeps)
    return "entries kept of each kv head" if entries else "share of the cache kept"
