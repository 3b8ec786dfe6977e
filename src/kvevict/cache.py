"""A key-value cache whose heads may differ in length.

Each layer has two parts. The *prefix* is what eviction left of the prompt, compacted: one row for
each entry kept, head after head, so that a head with 40 entries costs 40 rows. The *tail* takes
the tokens that come after; every head gets one entry for each, so it is a rectangle, preallocated
and written in place. A prefix is never written to, so several tails (questions on one compressed
context) can share it. It may be quantised, the tail never is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, groupby
from math import prod

from .ops import take
from .quantised import Quantised, count_groups
from .tensors import Tensor, integers, namespace

TAIL = 64  # entries that a tail grows by where nobody says how many tokens will come


@dataclass
class LayerCache:
    """Keys and values of one layer.

    Attributes:
        keys, values: the prefix, ``[sum(lengths), head_dim]``; keys with RoPE applied. Where it is
            quantised, ``[0, head_dim]``: the type and the place of what :meth:`runs` yields.
        lengths: entries that each kv head keeps in the prefix.
        tail_keys, tail_values: ``[kv_heads, capacity, head_dim]``, of which ``tail`` are written.
        tail: entries written to the tail.
        positions: where in the prompt the prefix's entries come from, ``[sum(lengths)]``; only
            when recorded, and until decoding evicts.
        columns: for policies that evict while decoding, attention statistics of all entries,
            ``[entries, 1 or group]`` each: a head's prefix, its tail, then the next head.
        moves: how often entries have come to lie elsewhere.
        quantised: the prefix where :meth:`quantise` has been called.
    """

    keys: Tensor
    values: Tensor
    lengths: list[int]
    tail_keys: Tensor = None
    tail_values: Tensor = None
    tail: int = 0
    positions: Tensor = None
    columns: list[Tensor] = field(default_factory=list)
    moves: int = 0
    quantised: Quantised | None = None
    _table: tuple[int, Tensor] | None = None

    @classmethod
    def compact(cls, k: Tensor, v: Tensor, record: bool = False) -> LayerCache:
        """All of ``[kv_heads, N, head_dim]``, without a copy where it lies that way.

        ``record`` fills in ``positions``.
        """
        heads, n, head_dim = k.shape
        rows = (x.reshape(-1, head_dim).contiguous() for x in (k, v))
        layer = cls(*rows, [n] * heads)
        if record:
            every = namespace(k).arange(n, device=k.device)
            layer.positions = every.expand(heads, n).reshape(-1)
        return layer

    def keep(self, rows: Tensor, lengths: list[int]) -> None:
        """Of the prefix's rows keep these, ascending, which leave ``lengths`` to the heads.

        The tail must be empty.

        Raises:
            ValueError: the prefix is quantised.
        """
        if lengths == self.lengths:
            return
        self._check_exact()
        self.lengths = lengths
        self.moves += 1
        self.keys, self.values = take(self.keys, self.values, rows)
        self.columns = [column.index_select(0, rows) for column in self.columns]
        if self.positions is not None:
            self.positions = self.positions.index_select(0, rows)

    def merge_tail(self) -> None:
        """Make the tail part of the prefix, each head's after its own; positions are let go.

        Raises:
            ValueError: the prefix is quantised.
        """
        self._check_exact()
        ns, head_dim = namespace(self.keys), self.keys.shape[-1]
        tails = [tail[:, : self.tail] for tail in (self.tail_keys, self.tail_values)]
        parts = [
            [ns.cat([x, tail[heads]], dim=1).reshape(-1, head_dim) for x, tail in zip(run, tails)]
            for heads, *run in self.runs()
        ]
        self.keys, self.values = (
            own[0] if len(own) == 1 else ns.cat(list(own), dim=0) for own in zip(*parts)
        )
        self.lengths = [length + self.tail for length in self.lengths]
        self.tail, self.positions = 0, None
        self.moves += 1

    def quantise(self, kv_dtype: str) -> None:
        """Hold the prefix in few bits from here on: it can be attended to, but not evicted from.

        Args:
            kv_dtype: of :data:`~kvevict.quantised.KV_DTYPES`.
        """
        self._check_exact()
        self.quantised = Quantised.of(kv_dtype, (run for _, *run in self.runs()))
        # Not a slice, which would hold all of it.
        self.keys, self.values = (x.new_empty((0, x.shape[-1])) for x in (self.keys, self.values))
        self.moves += 1

    def dequantise(self) -> None:
        """Hold the prefix's numbers, as their codes have them, in place of the codes."""
        if self.quantised:
            runs = [[x.reshape(-1, x.shape[-1]) for x in run] for _, *run in self.runs()]
            self.keys, self.values = (namespace(self.keys).cat(list(own)) for own in zip(*runs))
            self.quantised = None
            self.moves += 1

    @property
    def kv_dtype(self) -> str | None:
        """What the prefix is quantised to."""
        return self.quantised and self.quantised.kv_dtype

    def runs(self):
        """The prefix by runs of consecutive heads of equal length, without copies if not quantised.

        Yields:
            ``(heads, keys, values)``: a slice of kv heads and two ``[heads, length, head_dim]``.
        """
        head = row = group = 0
        head_dim = self.keys.shape[-1]
        for length, same in groupby(self.lengths):
            count = len(list(same))
            rows = count * length
            if self.quantised and length:
                run = self.quantised.numbers(row, group, count, length, self.keys.dtype)
            else:
                whole = (self.keys, self.values)
                run = (x[row : row + rows].reshape(count, length, head_dim) for x in whole)
            yield slice(head, head + count), *run
            head, row, group = head + count, row + rows, group + count * count_groups(length)

    def table(self) -> list[list[int]]:
        """Where each head's entries lie on a GPU: see :mod:`kvevict.kernels.decode`."""
        held = self.quantised or self
        before = [0, *accumulate(self.lengths)][:-1]
        tails = [head * self.tail_keys.shape[1] for head in range(len(self.lengths))]
        parts = [(held.keys, before), (held.values, before)]
        parts += [(self.tail_keys, tails), (self.tail_values, tails)]
        scales = [[0] * len(self.lengths)] * 2
        if self.quantised:
            groups = [0, *accumulate(map(count_groups, self.lengths))][:-1]
            of_keys, of_values = held.key_scales, held.value_scales.unsqueeze(-1)
            scales = [_addresses(of_keys, groups), _addresses(of_values, before)]
        return [*(_addresses(x, rows) for x, rows in parts), list(self.lengths), *scales]

    @property
    def device_table(self) -> Tensor:
        """The same on the device, int64 ``[7, kv_heads]``."""
        if self._table is None or self._table[0] != self.moves:
            table = integers(self.table(), namespace(self.keys).int64, like=self.keys)
            self._table = (self.moves, table)
        return self._table[1]

    def append(self, k: Tensor, v: Tensor) -> None:
        """Write ``[kv_heads, tokens, head_dim]`` after the tail's last entry."""
        tokens = k.shape[1]
        if self.tail_keys is None or self.tail + tokens > self.tail_keys.shape[1]:
            self.reserve(self.tail + max(tokens, TAIL))
        self.tail_keys[:, self.tail : self.tail + tokens] = k
        self.tail_values[:, self.tail : self.tail + tokens] = v
        self.tail += tokens

    def reserve(self, capacity: int) -> None:
        """Make the tail hold ``capacity`` entries, keeping what is written."""
        self.moves += 1
        ns = namespace(self.keys)
        shape = (len(self.lengths), capacity, self.keys.shape[-1])
        old = (self.tail_keys, self.tail_values)
        self.tail_keys, self.tail_values = (
            ns.empty(shape, dtype=self.keys.dtype, device=self.keys.device) for _ in old
        )
        if self.tail:
            self.tail_keys[:, : self.tail] = old[0][:, : self.tail]
            self.tail_values[:, : self.tail] = old[1][:, : self.tail]

    def fork(self) -> LayerCache:
        """The same prefix, not copied, with an empty tail of its own.

        Raises:
            ValueError: the tail has entries.
        """
        if self.tail:
            raise ValueError("only a cache without decoded tokens can be forked")
        return LayerCache(
            self.keys,
            self.values,
            list(self.lengths),
            columns=self.columns,
            quantised=self.quantised,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held, scales and the whole of the preallocated tail included."""
        held = [self.keys, self.values, self.tail_keys, self.tail_values]
        if self.quantised:
            held += self.quantised.tensors.values()
        return sum(_nbytes(t) for t in held if t is not None)

    def _check_exact(self) -> None:
        if self.quantised:
            raise ValueError("a quantised prefix stays as it is")


@dataclass
class KVCache:
    """The layers of one sequence.

    Attributes:
        layers: filled from the lowest layer up.
        seen: tokens of the sequence so far, evicted or not: the next token's position.
    """

    layers: list[LayerCache] = field(default_factory=list)
    seen: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def entries(self) -> int:
        """Entries held, over all layers and kv heads."""
        return sum(sum(layer.lengths) + layer.tail * len(layer.lengths) for layer in self.layers)

    def reserve(self, tokens: int) -> None:
        """Preallocate the tails for ``tokens`` more tokens."""
        for layer in self.layers:
            layer.reserve(layer.tail + tokens)

    def dequantise(self) -> None:
        """Hold the numbers of all layers in place of their codes."""
        for layer in self.layers:
            layer.dequantise()

    def fork(self) -> KVCache:
        """A second cache over the same prefixes, whose tokens do not reach this one."""
        return KVCache([layer.fork() for layer in self.layers], self.seen)


def _addresses(x: Tensor, rows: list[int]) -> list[int]:
    """Where rows of ``x`` begin, ``[n, width]``."""
    width = x.shape[-1] * x.element_size()
    return [x.data_ptr() + row * width for row in rows]


def _nbytes(t: Tensor) -> int:
    return prod(t.shape) * t.element_size()
