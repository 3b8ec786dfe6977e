"""The second stream of tokens, held to a plain pass over the prompt with each chunk behind it."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict import Full, KVzip
from kvevict.engine import prefill, prefilling
from kvevict.repetition import Repetition
from tests.rounding import assert_same

IDS = [(i * i * 31 + 7 * i) % 250 + 2 for i in range(110)]
REPETITION = Repetition(before=IDS[:6], first=[20, 21, 22], later=[23, 24], header=[30, 31])


class Watched:
    """A decoder that remembers queries and keys by layer, float64 ``[heads, tokens, head_dim]``."""

    def __init__(self, decoder) -> None:
        self.decoder, self.seen = decoder, {}

    def __getattr__(self, name: str):
        return getattr(self.decoder, name)

    def project(self, layer: int, hidden, start):
        projected = self.decoder.project(layer, hidden, start)
        self.seen[layer] = [np.asarray(x[0].detach().numpy(), np.float64) for x in projected[:2]]
        return projected


def plain_scores(decoder, size: int) -> np.ndarray:
    """By layer and kv head, from one pass of its own for each chunk: ``[layers, heads, n]``."""
    n, sinks = len(IDS), 6
    result = np.zeros((decoder.layers, decoder.kv_heads, n))
    for start, stop, ids in REPETITION.chunks(IDS, size):
        watched = Watched(decoder)
        prefill(watched, IDS + ids, [Full()])
        columns = [*range(sinks), *range(start, stop), *range(n, n + len(ids))]
        for layer, (q, k) in watched.seen.items():
            k = np.repeat(k[:, columns], len(q) // len(k), axis=0)
            logits = q[:, n:] @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5
            logits[:, :, -len(ids) :][:, ~np.tri(len(ids), dtype=bool)] = -np.inf
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            own = weights[:, :, sinks : sinks + stop - start].max(1)
            result[layer, :, start:stop] = own.reshape(decoder.kv_heads, -1, stop - start).max(1)
    return result


@pytest.mark.parametrize("size", [30, 200])
def test_as_one_pass_for_each_chunk(tiny_decoder, monkeypatch, size: int) -> None:
    expected = plain_scores(tiny_decoder, size)
    monkeypatch.setattr(prefilling, "CHUNK", 40)
    assert (expected[:, :, 6:] > 0).all()
    policy = KVzip(0.25, chunk_size=size, min_eviction_seqlen=0)
    (session, whole) = prefill(
        tiny_decoder, IDS, [policy, Full()], record=True, repetition=REPETITION
    )
    (alone,) = prefill(tiny_decoder, IDS, [Full()])
    assert_same(whole.logits, alone.logits)

    layers, heads, n = expected.shape
    budget = int(0.25 * n)
    ranked = np.sort(expected[:, :, 6:].reshape(-1))[::-1]
    last = ranked[(budget - 6) * heads * layers - 1]
    total = 0
    for layer, cache in zip(expected, session.cache.layers):
        ends = np.cumsum(cache.lengths)[:-1]
        for own, positions in zip(layer, np.split(np.asarray(cache.positions), ends)):
            kept = np.isin(np.arange(n), positions)
            assert kept[:6].all()
            assert kept[6:][own[6:] > last * (1 + 1e-3)].all()
            assert not kept[6:][own[6:] < last * (1 - 1e-3)].any()
            total += len(positions)
    assert total == budget * heads * layers
