"""Caches of several sequences as the GPU's kernels find them: see :mod:`kvevict.kernels.decode`."""

from __future__ import annotations

from math import ceil
from weakref import ref

import numpy as np

from .. import kernels
from ..cache import TAIL, KVCache
from ..tensors import Tensor, integers, namespace


class Table:
    """Caches in places, layer by layer.

    A free place has no entries, and a tail that anything may be written to.

    Args:
        like: a cache of the model's, quantised as all that are to come.
        places: how many there are.
        spare: how much more than it needs a launch may have, so that it serves other caches, too.

    Attributes:
        launch: what launches are made for: chunks of the prefixes by layer, capacity of the tails.
    """

    def __init__(self, like: KVCache, places: int, spare: float = 1.0) -> None:
        keys, kv_heads = like.layers[0].keys, len(like.layers[0].lengths)
        layers = len(like.layers)
        self._scratch = keys.new_zeros((1, keys.shape[-1]))
        self._free = np.array([[self._scratch.data_ptr()] * kv_heads] * 4 + [[0] * kv_heads] * 3)
        self._host = np.empty((layers, len(self._free), places, kv_heads), np.int64)
        self._host[:] = self._free[:, None]
        flat = self._host.reshape(*self._host.shape[:2], -1)
        self._rows = integers(flat, namespace(keys).int64, like=keys)
        self._held: list[tuple[ref, int] | None] = [None] * places
        self._capacities = [1] * places
        self._spare, self._kv_dtype = spare, like.layers[0].kv_dtype
        self._shares: Tensor | None = None  # [layers, …], what the kernel calls places
        self.launch = ([kernels.count_chunks([])] * layers, 1)

    def put(self, caches: list[KVCache | None]) -> None:
        """Have these caches in the places, None in a free one; each is given room for a token."""
        moved = [place for place, cache in enumerate(caches) if self._moved(place, cache)]
        for place in moved:
            self._enter(place, caches[place])
        if moved:
            flat = self._host.reshape(*self._host.shape[:2], -1)
            self._rows[:] = integers(flat, self._rows.dtype, like=self._rows)
            self._make_launch(flat[:, 4])

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tail_lens: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Write a token to each tail, and attend.

        Args:
            q, k, v: ``[places, heads, 1, head_dim]``.
            tail_lens: int32 ``[places]``, the new token included.
            rope: tables by which queries and keys are still to be turned, see
                :meth:`~kvevict.engine.session.Decoder.unturned`.

        Returns:
            ``[places · query_heads, 1, head_dim]``.
        """
        head_dim, rows = q.shape[-1], self._rows[layer]
        if rope:
            q = kernels.turn_and_append(q, k, v, *rope, rows, tail_lens)
        else:
            kernels.append(k.reshape(-1, head_dim), v.reshape(-1, head_dim), rows, tail_lens)
            q = q.reshape(-1, 1, head_dim)
        chunks, capacity = self.launch
        places = self._shares[layer]
        return kernels.decode_attention(
            q, rows, tail_lens, chunks[layer], capacity, places, self._kv_dtype
        )

    def _moved(self, place: int, cache: KVCache | None) -> bool:
        """Whether a place has had another cache, or the same one elsewhere."""
        held = self._held[place]
        if cache is None:
            return held is not None
        first = cache.layers[0]
        if first.tail_keys is None or first.tail == first.tail_keys.shape[1]:
            cache.reserve(TAIL)
        return held is None or held[0]() is not cache or held[1] != first.moves

    def _enter(self, place: int, cache: KVCache | None) -> None:
        if cache is None:
            self._held[place], self._capacities[place] = None, 1
            self._host[:, :, place] = self._free
            return
        first = cache.layers[0]
        # A weak reference: the memory of who leaves is free at once.
        self._held[place] = (ref(cache), first.moves)
        self._capacities[place] = first.tail_keys.shape[1]
        self._host[:, :, place] = [layer.table() for layer in cache.layers]

    def _make_launch(self, lengths: np.ndarray) -> None:
        """Enough programs for heads of ``lengths [layers, heads]``; the same ones if they do."""
        chunks, capacity = self.launch
        needed = [_programs(own, made).sum() for own, made in zip(lengths, chunks)]
        if any(now > made.count for now, made in zip(needed, chunks)):
            fresh = map(kernels.count_chunks, lengths.tolist())
            chunks = [made._replace(count=ceil(made.count * self._spare)) for made in fresh]
        self.launch = (chunks, max(capacity, *self._capacities))
        shares = share_out(lengths, chunks)
        if self._shares is None or list(self._shares.shape) != list(shares.shape):
            self._shares = self._rows.new_empty(shares.shape, dtype=namespace(self._rows).int32)
        self._shares[:] = integers(shares, self._shares.dtype, like=self._shares)


def share_out(lengths: np.ndarray, chunks: list[kernels.Chunks]) -> np.ndarray:
    """By layer what :func:`kvevict.kernels.decode_attention` takes for ``places``."""
    layers, heads = lengths.shape
    programs = max(made.count for made in chunks)
    programs += -(programs + heads) % 4  # 16 bytes, so that all rows are aligned alike
    shares = np.full((layers, programs + heads), -1, np.int32)
    for own, made, share in zip(lengths, chunks, shares):
        counts = _programs(own, made)
        share[: counts.sum()] = np.repeat(np.arange(heads), counts)
        share[programs:] = counts.cumsum() - counts
    return shares


def _programs(lengths: np.ndarray, made: kernels.Chunks) -> np.ndarray:
    """How many each head has, as :func:`kvevict.kernels.count_chunks` counts them."""
    return np.maximum(-(-lengths // made.entries), 1)
