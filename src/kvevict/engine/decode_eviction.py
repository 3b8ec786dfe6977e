"""Eviction that goes on while decoding.

Each held entry carries the attention statistics that its scorer is made of. Every new row of
weights is added to them (a statistic over one row is replaced: the newest row counts; window rows
move on; where rows fade, each new one fades what was there). When a head holds more than its budget
and the slack, the policy's own scorer and selector run again over what is held, with the head's
budget from the prompt. With the kernels, the host waits for the device once a step.
"""

from __future__ import annotations

from copy import copy

from ..attention import ColumnStatistic, Weights, WindowRows
from ..cache import LayerCache
from ..methods import LayerView
from ..ops import nonzero
from ..tensors import Tensor, namespace
from .prompt_eviction import Eviction


class DecodeEviction:
    """Keeps the cache of one session bounded.

    Attributes:
        statistics: what has to be observed of the decoded rows.
    """

    def __init__(self, eviction: Eviction) -> None:
        self.eviction = eviction
        self.statistics = eviction.statistics
        self._budgets = [held.lengths for held in eviction.cache.layers]  # by layer and head
        self._steps = 0

    @classmethod
    def for_policy(cls, eviction: Eviction) -> DecodeEviction | None:
        """For policies that evict while decoding, once a prompt that was evicted is done."""
        wanted = eviction.policy.decode_slack is not None and eviction.active
        return cls(eviction) if wanted else None

    def fork(self) -> DecodeEviction:
        """The same state, going its own way."""
        return copy(self)

    def observe(self, layer: int, held: LayerCache, weights: list[Tensor] | None, model) -> None:
        """Add the new rows' weights, and evict if the layer has outgrown its budget."""
        pairs = zip(self.statistics, held.columns)
        held.columns = [_grown(statistic, column, weights) for statistic, column in pairs]
        policy = self.eviction.policy
        over = max(length - full for length, full in zip(held.lengths, self._budgets[layer]))
        if over + held.tail > policy.decode_slack:
            self._shrink(layer, held, model.output_projection(layer))
        if layer == self.eviction.layers - 1:
            self.eviction.checks.look()

    def _shrink(self, layer: int, held: LayerCache, w_o: Tensor) -> None:
        self._steps += 1
        noise_keys = self.eviction.noise_keys(layer, self._steps)
        drop = self.eviction.policy.decode_drop
        targets = [full - drop.of(full) for full in self._budgets[layer]]
        held.merge_tail()
        masks, row = [], 0
        for heads, keys, values in held.runs():
            count, length, _ = keys.shape
            rows = slice(row, row + count * length)
            row = rows.stop
            view = LayerView(
                statistics=tuple(
                    _by_head(column[rows], statistic, count, w_o.shape[1])
                    for column, statistic in zip(held.columns, self.statistics)
                ),
                keys=keys,
                values=values,
                w_o=w_o[heads],
                noise_keys=noise_keys[heads],
                prompt=self.eviction.prompt,
            )
            masks.append(self._choose(view, layer, targets[heads.start]).reshape(-1))
        mask = namespace(held.keys).cat(masks, dim=0)
        held.keep(nonzero(mask, sum(targets)), targets)

    def _choose(self, view: LayerView, layer: int, target: int) -> Tensor:
        eviction = self.eviction
        scores = eviction.score(view, layer)
        sinks, recent = eviction.protected(target)
        counts = [target - sinks - recent] * scores.shape[0]
        mask, _ = eviction.select(scores, view, layer, sinks, recent, lambda _: counts)
        return mask


def _by_head(rows: Tensor, statistic: Weights, heads: int, group: int) -> Tensor:
    """Rows of heads that hold equally much as a scorer wants them (:class:`LayerView`)."""
    columns = rows.reshape(heads, -1, rows.shape[-1]).swapaxes(-1, -2)
    if isinstance(statistic, WindowRows):
        return columns.reshape(heads, group, -1, columns.shape[-1])
    return columns.squeeze(1) if statistic.per_kv_head else columns


def _grown(statistic: Weights, column: Tensor, weights: list[Tensor]) -> Tensor:
    """A statistic of all entries held, the new rows' own among them.

    Args:
        column: before these rows, ``[entries, per]``.
        weights: by run of heads, ``[heads, group, rows, held]``.
    """
    ns = namespace(column)
    per, new = column.shape[-1], weights[0].shape[2]
    parts, row = [], 0
    for run in weights:
        heads, group, _, held = run.shape
        before = column[row : row + heads * (held - new)].reshape(heads, held - new, per)
        row += heads * (held - new)
        before = ns.cat([before, before.new_zeros((heads, new, per))], dim=1)
        if isinstance(statistic, WindowRows):
            window = [before.reshape(heads, held, group, -1), run.swapaxes(-1, -2).swapaxes(1, 2)]
            rows = ns.cat(window, dim=-1)[..., -statistic.rows :]
        elif statistic.rows == 1:
            rows = _rows(statistic, run)
        else:
            left = 2.0 ** (-statistic.fading * statistic.power * new)
            rows = _rows(statistic, run) + (before * left if statistic.fading else before)
        parts.append(rows.reshape(heads * held, -1))
    return ns.cat(parts, dim=0)


def _rows(statistic: ColumnStatistic, weights: Tensor) -> Tensor:
    """The statistic of new rows, from ``[heads, group, rows, held]``: ``[heads, held, per]``."""
    weights = weights[:, :, statistic.first_row(weights.shape[2]) :]
    ns, rows = namespace(weights), weights.shape[2]
    if statistic.fading:
        after = ns.arange(rows - 1, -1, -1, device=weights.device).float()
        weights = weights * (2.0 ** (-statistic.fading * after)).reshape(1, 1, rows, 1)
    if statistic.reduce == "count_below_mean":
        total = weights.shape[1] if statistic.per_kv_head else 1
        weights = weights.sum(dim=1, keepdim=True) if statistic.per_kv_head else weights
        held = weights.shape[-1]
        seen = ns.arange(held - rows + 1, held + 1, device=weights.device).unsqueeze(-1)
        visible = ns.arange(held, device=weights.device) < seen
        below = ((weights < total / seen.float()) & visible).float()
        weights = below + weights * 0.0  # NaN stays NaN, for the scores' check
        return weights.sum(dim=2).swapaxes(-1, -2)
    total = (weights if statistic.power == 1 else weights * weights).sum(dim=2)
    total = total.sum(dim=1, keepdim=True) if statistic.per_kv_head else total
    return total.swapaxes(-1, -2)
