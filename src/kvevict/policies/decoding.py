"""Eviction that goes on while decoding.

Each held entry carries the attention statistics that its scorer is made of. Every new row of
weights is added to them (a statistic over one row is replaced: the newest row counts). When a head
holds more than its budget and the slack, the policy's own scorer and selector run again over what
is held, with the head's budget from the prompt.
"""

from __future__ import annotations

from copy import copy
from fractions import Fraction

from .. import budget
from ..attention import ColumnStatistic
from ..cache import LayerCache
from ..tensors import Tensor, namespace
from .base import LayerView
from .eviction import Eviction


class DecodeEviction:
    """Keeps the cache of one session bounded.

    Attributes:
        statistics: what has to be observed of the decoded rows.
    """

    def __init__(self, eviction: Eviction) -> None:
        self.eviction = eviction
        self.statistics = eviction.statistics
        layers = eviction.cache.layers
        self._budgets = [list(held.lengths) for held in layers]  # by layer and head
        self._gathered = [  # by layer, run of heads, statistic: [heads, 1 or group, held]
            _by_run(columns, held) for columns, held in zip(eviction.columns, layers)
        ]
        self._steps = 0

    @classmethod
    def of(cls, eviction: Eviction) -> DecodeEviction | None:
        """For policies that evict while decoding, once a prompt that was evicted is done."""
        wanted = eviction.policy.decode_slack is not None and eviction.active
        return cls(eviction) if wanted else None

    def fork(self) -> DecodeEviction:
        """The same state, going its own way."""
        other = copy(self)
        other._gathered = [[list(columns) for columns in runs] for runs in self._gathered]
        return other

    def after(self, layer: int, held: LayerCache, weights: list[Tensor] | None, model) -> None:
        """Add the new rows' weights, and evict if the layer has outgrown its budget."""
        if self.statistics:
            runs = zip(self._gathered[layer], weights)
            self._gathered[layer] = [self._gather(old, new) for old, new in runs]
        policy = self.eviction.policy
        over = max(length - full for length, full in zip(held.lengths, self._budgets[layer]))
        if over + held.tail > policy.decode_slack:
            self._shrink(layer, held, model.output_projection(layer))

    def _gather(self, old: list[Tensor], weights: Tensor) -> list[Tensor]:
        new = []
        for column, statistic in zip(old, self.statistics):
            rows = _rows(statistic, weights)
            ns = namespace(rows)
            grown = rows.shape[-1] - column.shape[-1]
            if statistic.rows != 1 and column.shape[-1]:
                edge = column.new_zeros((*column.shape[:-1], grown))
                rows = rows + ns.cat([column, edge], dim=-1)
            new.append(rows)
        return new

    def _shrink(self, layer: int, held: LayerCache, w_o: Tensor) -> None:
        eviction, policy = self.eviction, self.eviction.policy
        self._steps += 1
        noise_keys = eviction.noise_keys(layer, self._steps)
        keys, values, lengths = [], [], []
        for run, (heads, k, v) in enumerate(held.runs()):
            ns = namespace(k)
            full = self._budgets[layer][heads.start]
            target = full - budget.share(full, Fraction(str(policy.decode_drop)))
            k = ns.cat([k, held.tail_keys[heads, : held.tail]], dim=1)
            v = ns.cat([v, held.tail_values[heads, : held.tail]], dim=1)
            columns = self._gathered[layer][run]
            view = LayerView(
                columns=tuple(
                    c.squeeze(1) if s.per_kv_head else c for s, c in zip(self.statistics, columns)
                ),
                keys=k,
                values=v,
                w_o=w_o[heads],
                noise_keys=noise_keys[heads],
            )
            mask = self._choose(view, layer, target)
            self._gathered[layer][run] = [_take(c, mask) for c in columns]
            keys.append(_rows_of(k, mask))
            values.append(_rows_of(v, mask))
            lengths += [target] * k.shape[0]
        ns = namespace(keys[0])
        held.keys, held.values = ns.cat(keys, dim=0), ns.cat(values, dim=0)
        held.lengths, held.tail, held.positions = lengths, 0, None
        if self.statistics:
            self._gathered[layer] = _regroup(self._gathered[layer], held)

    def _choose(self, view: LayerView, layer: int, target: int) -> Tensor:
        eviction = self.eviction
        scores = eviction.score(view, layer)
        sinks, recent = eviction.policy.selector.protected(eviction.n, target)
        counts = [target - sinks - recent] * scores.shape[0]
        mask, _ = eviction.select(scores, view, layer, sinks, recent, lambda _: counts)
        eviction.check()
        return mask


def _rows(statistic: ColumnStatistic, weights: Tensor) -> Tensor:
    """The statistic of new rows, from ``[heads, group, rows, held]``: ``[heads, per, held]``."""
    weights = weights[:, :, statistic.first_row(weights.shape[2]) :]
    if statistic.reduce == "count_below_mean":
        total = weights.shape[1] if statistic.per_kv_head else 1
        weights = weights.sum(dim=1, keepdim=True) if statistic.per_kv_head else weights
        rows, held = weights.shape[-2:]
        ns = namespace(weights)
        seen = ns.arange(held - rows + 1, held + 1, device=weights.device).unsqueeze(-1)
        visible = ns.arange(held, device=weights.device) < seen
        below = ((weights < total / seen.float()) & visible).float()
        return (below + weights * 0.0).sum(dim=2)  # NaN stays NaN, for the scores' check
    rows = (weights if statistic.reduce == "sum" else weights * weights).sum(dim=2)
    return rows.sum(dim=1, keepdim=True) if statistic.per_kv_head else rows


def _regroup(runs: list[list[Tensor]], held: LayerCache) -> list[list[Tensor]]:
    """Join the columns of neighbouring runs that have come to the same length."""
    grouped = []
    for heads, _, _ in held.runs():
        parts = [runs.pop(0)]
        while sum(columns[0].shape[0] for columns in parts) < heads.stop - heads.start:
            parts.append(runs.pop(0))
        ns = namespace(parts[0][0])
        grouped.append([ns.cat(list(columns), dim=0) for columns in zip(*parts)])
    return grouped


def _by_run(columns: list[Tensor], held: LayerCache) -> list[list[Tensor]]:
    """Columns ``[sum(lengths), per]`` cut into the cache's runs."""
    runs, row = [], 0
    for _, keys, _ in held.runs():
        heads, length = keys.shape[:2]
        parts = [c[row : row + heads * length] for c in columns]
        runs.append([p.reshape(heads, length, p.shape[-1]).swapaxes(-1, -2) for p in parts])
        row += heads * length
    return runs


def _take(column: Tensor, mask: Tensor) -> Tensor:
    """Columns ``[heads, per, n]`` where ``mask [heads, n]`` is set, equally often in each head."""
    heads, per = column.shape[:2]
    index = mask.nonzero()[:, 1].reshape(heads, 1, -1)
    return namespace(column).take_along_dim(
        column, index.expand(heads, per, index.shape[-1]), dim=-1
    )


def _rows_of(x: Tensor, mask: Tensor) -> Tensor:
    index = mask.reshape(-1).nonzero().reshape(-1)
    return x.reshape(-1, x.shape[-1]).index_select(0, index)
