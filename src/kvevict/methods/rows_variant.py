"""Which rows look, how they are weighed and pooled, and whose heads: the space of a search."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from ..attention import Statistic, WindowRows
from ..errors import InputError
from ..scoring import neighbours, projected_l2
from ..tensors import Tensor, namespace
from .base import LayerView, PromptShape, Scorer
from .fade import Fade
from .parts import check_window

Norm = Literal["l2", "l1", "max"]
Pool = Literal["mean", "max"]
Heads = Literal["group", "worst", "layer"]


@dataclass(frozen=True)
class RowsScore(Scorer):
    """‖(w_i^½ a^g_ij)_i‖ · ‖v_j W_O^g‖₂ over the prompt's last rows i, summed over the group,
    pooled over positions, then divided by the layer's sum.

    With w_i = 1 for the last 32 rows, the L2 norm and no rows left out, this is LaProx's score.

    Attributes:
        window_size: how many rows look; 0 for those of the question.
        power: p; the i-th row from the end, from 1, counts w_i = i^-p.
        scales: in place of one window the sum over several: sizes joined by +, as ``1+4+16``. The
            norm of each is divided by that of as many ones.
        skip: last rows that do not look, as those of a chat template's end.
        norm: over rows: ``l2``, ``l1`` (their sum) or ``max``.
        kernel_size: positions pooled.
        shift: how many positions the pooled ones lie before those around the entry itself: an
            answer that is copied is read on from where it was found.
        pool: their ``mean`` or their ``max``.
        tail: p; above 0 an attended entry lends its neighbours a share that falls with their
            distance d as (1 + d / plateau)^-p, in place of ``kernel_size`` equal ones: the more
            it is attended to, the farther that reaches. They sum up, or the highest counts
            (``pool``).
        plateau: of that share.
        back, ahead: how far it goes, towards the prompt's begin and its end.
        project: multiply by ‖v_j W_O^g‖₂.
        renormalise: what leaving entry j out does to row i's output o_i when the other weights
            grow to a sum of 1 again: a_ij / (1 - a_ij) · ‖(v_j - o_i) W_O^g‖₂ in place of
            a_ij ‖v_j W_O^g‖₂ (CAOTE, arXiv 2504.14051, has it without W_O).
        heads: whose scores count for a kv head: the sum over its ``group``, the ``worst`` case (the
            highest) of the group, or the sum over the ``layer``.
        recent: last entries that are protected, and so not pooled.
        n_sink: first entries that are protected, and lend their neighbours nothing.
    """

    window_size: int = 32
    power: float = 0.0
    scales: str = ""
    skip: int = 0
    norm: Norm = "l2"
    kernel_size: int = 7
    shift: int = 0
    pool: Pool = "mean"
    tail: float = 0.0
    plateau: float = 1.0
    back: int = 31
    ahead: int = 31
    project: bool = True
    renormalise: bool = False
    heads: Heads = "group"
    recent: int = 8
    n_sink: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window_size or 1, self.kernel_size)
        if min(self.skip, self.shift, self.recent, self.n_sink, self.power, self.tail) < 0:
            raise InputError("skip, shift, recent, n_sink, power and tail must not be negative")
        if min(self.back, self.ahead) < 0 or self.plateau <= 0:
            raise InputError("back and ahead must not be negative, and plateau above 0")
        if not all(size.isdecimal() and int(size) for size in self.scales.split("+") if size):
            raise InputError(f"scales are sizes joined by +, not {self.scales!r}")

    def statistics(self, prompt: PromptShape) -> tuple[Statistic, ...]:
        window = max(self._scales, default=self.window_size)
        rows = window + self.skip if window else prompt.question_tokens
        if rows is None:
            raise InputError("the question's rows are to look, and nobody says which they are")
        return (WindowRows(rows),)

    def __call__(self, view: LayerView) -> Tensor:
        (weights,) = view.statistics  # [kv_heads, group, rows, N]
        weights = weights[:, :, : max(1, weights.shape[2] - self.skip)]
        if self.renormalise:
            weights = _changes(weights, view.values, view.w_o)
        if self._scales:
            seen = sum(self._norm(weights[:, :, -size:]) / self._ones(size)
                       for size in self._scales)  # fmt: skip
        else:
            seen = self._norm(weights)
        if self.project and not self.renormalise:
            seen = seen * projected_l2(view.values, view.w_o)
        scores = seen.amax(dim=1) if self.heads == "worst" else seen.sum(dim=1)
        if self.heads == "layer":
            scores = scores.sum(dim=0, keepdim=True).expand(view.keys.shape[0], scores.shape[-1])
        scores = self._pooled(scores)
        return scores / scores.sum().clamp(min=1e-30)

    @property
    def _scales(self) -> list[int]:
        return [int(size) for size in self.scales.split("+") if size]

    def _ones(self, size: int) -> float:
        return {"l2": size**0.5, "l1": size, "max": 1.0}[self.norm]

    def _norm(self, weights: Tensor) -> Tensor:
        """Over rows: ``[kv_heads, group, N]``."""
        if self.power:
            rows = weights.shape[2]
            from_end = namespace(weights).arange(rows, 0, -1, device=weights.device)
            weights = weights * (from_end.float() ** (-self.power / 2)).reshape(1, 1, rows, 1)
        if self.norm == "max":
            return weights.amax(dim=2)
        return weights.sum(dim=2) if self.norm == "l1" else (weights * weights).sum(dim=2).sqrt()

    def _pooled(self, scores: Tensor) -> Tensor:
        n, half, highest = scores.shape[-1], self.kernel_size // 2, self.pool == "max"
        until = max(0, n - self.recent)
        if self.tail:
            shares = self.tail, self.plateau, highest
            return neighbours(scores, self.back, self.ahead, self.n_sink, until, *shares)
        if self.shift:
            before = scores.new_zeros((scores.shape[0], self.shift))
            scores = namespace(scores).cat([before, scores], dim=-1)[:, :n]
        if highest:
            return neighbours(scores, half, half, self.n_sink, highest=True)
        return neighbours(scores, half, half, self.n_sink, until) / self.kernel_size


def _changes(weights: Tensor, values: Tensor, w_o: Tensor) -> Tensor:
    """a_ij / (1 - a_ij) · ‖(v_j - o_i) W_O^g‖₂, ``[kv_heads, group, rows, N]`` as ``weights``."""
    v, w = values.float().unsqueeze(1), w_o.float()
    gram = w @ w.swapaxes(-1, -2)
    out = weights @ v  # [kv_heads, group, rows, head_dim]
    of_out = ((out @ gram) * out).sum(dim=-1, keepdim=True)
    of_values = projected_l2(values, w_o).unsqueeze(2)
    squares = of_values * of_values + of_out - 2 * (out @ gram) @ v.swapaxes(-1, -2)
    return weights / (1 - weights).clamp(min=1e-3) * squares.clamp(min=0).sqrt()


@dataclass(frozen=True)
class RowsVariant(Fade):
    """A point of the search: Fade under another score.

    Attributes:
        all others: see :class:`RowsScore`.
    """

    name: ClassVar[str] = "rows-variant"
    listed: ClassVar[bool] = False

    kernel_size: int = 7
    power: float = 0.0
    scales: str = ""
    skip: int = 0
    norm: Norm = "l2"
    shift: int = 0
    pool: Pool = "mean"
    tail: float = 0.0
    plateau: float = 1.0
    back: int = 31
    ahead: int = 31
    project: bool = True
    renormalise: bool = False
    heads: Heads = "group"
    n_sink: int = 0

    @property
    def scorer(self) -> Scorer:
        return RowsScore(**{each.name: getattr(self, each.name) for each in fields(RowsScore)})
