"""How unlikely the reference answers are, and whether that ranks settings as scores do."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from statistics import mean

import numpy as np

import benchmarks
from reporting.pool import Cell, settings_of, task_names
from reporting.style import amount, display
from reporting.tables import DASH, Table, titled

NOTE = (
    "The mean over the tokens of the first reference answer, each given the true ones before it; "
    "lower is likelier."
)
RANKS = "ρ: Spearman's rank correlation of the settings' scores with their likelihoods."


def likelihood_table(cells: list[Cell], length: str = "") -> Table | None:
    """Methods and budgets down, tasks across; None where no likelihood was noted."""
    cells = [cell for cell in cells if cell.nll is not None]
    if not cells:
        return None
    names, settings = task_names(cells), settings_of(cells)
    own = {(cell.method, cell.keep, cell.task): cell for cell in cells}
    columns = [[own.get((*setting, name)) for setting in settings] for name in names]
    nlls = [[cell and cell.nll for cell in column] for column in columns]
    scores = [[cell and cell.score.mean for cell in column] for column in columns]
    if len(names) > 1:
        nlls.append(_means(nlls))
        scores.append(_means(scores))
    rows = [
        [display(method), amount(keep), *map(_cell, row)]
        for (method, keep), row in zip(settings, zip(*nlls))
    ]
    if len(settings) > 2:
        rows.append(["ρ", "", *(_correlation(*pair) for pair in zip(scores, nlls))])
    header = ["Method", "Kept", *(benchmarks.tasks()[name].title for name in names)]
    header += ["Mean"] * (len(names) > 1)
    notes = [NOTE, *([RANKS] if len(settings) > 2 else [])]
    title = titled("Negative log-likelihood of the reference", length)
    return Table(title, header, rows, notes)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of ranks, those of equals being their mean; NaN where all are equal."""
    ranks = [_ranks(np.asarray(own, float)) for own in (x, y)]
    if any(np.ptp(own) == 0 for own in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(x: np.ndarray) -> np.ndarray:
    return ((x[:, None] > x).sum(1) + (x[:, None] >= x).sum(1) + 1) / 2


def _means(columns: list[list[float | None]]) -> list[float | None]:
    """Over tasks, of each setting that has them all."""
    return [None if None in row else mean(row) for row in zip(*columns)]


def _correlation(scores: list[float | None], nlls: list[float | None]) -> str:
    pairs = [(score, -nll) for score, nll in zip(scores, nlls) if None not in (score, nll)]
    rho = spearman(*zip(*pairs)) if len(pairs) > 2 else float("nan")
    return DASH if isnan(rho) else f"{rho:.2f}"


def _cell(nll: float | None) -> str:
    return DASH if nll is None else f"{nll:.3f}"
