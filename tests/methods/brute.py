"""What the policies are held to: given tensors in place of a model, and choices in float64.

`Prompt` is a decoder whose queries, keys and values at every layer and position are given, so
eviction runs on the real path (`prefill`, `Session.extend`) and brute force knows its inputs. The
tensors are Paddle's, or PyTorch's where that is the framework at hand.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

try:
    import paddle as framework
except ImportError:
    import torch as framework

from kvevict.engine import prefill
from kvevict.engine.session import Session
from kvevict.methods import Policy
from kvevict.repetition import Repetition

REPETITION = Repetition(before=[], first=[5] * 3, later=[6] * 4, header=[7] * 2)


def tensor(x: np.ndarray):
    """An array in the framework at hand."""
    return getattr(framework, "to_tensor", framework.tensor)(x)


class Prompt:
    """Random tensors of a sequence; the first ``n`` tokens are the prompt.

    Attributes:
        q: ``[layers, query_heads, total, d]``, k, v: ``[layers, kv_heads, total, d]``.
        w_o: ``[layers, kv_heads, group, d, hidden]``; all float32.
    """

    def __init__(self, seed, n, layers=2, kv_heads=2, group=2, d=8, hidden=12, more=0) -> None:
        rng = np.random.default_rng(seed)
        self.n, self.layers, self.kv_heads, self.group = n, layers, kv_heads, group
        self.max_positions = 1 << 20

        def normal(*shape: int) -> np.ndarray:
            return rng.normal(size=(layers, *shape)).astype(np.float32)

        total = n + more
        self.q = normal(kv_heads * group, total, d) * 2
        self.k, self.v = normal(kv_heads, total, d), normal(kv_heads, total, d)
        self.w_o = normal(kv_heads, group, d, hidden)

    def weights(self, layer: int) -> np.ndarray:
        """Causal attention weights of the prompt, float64 ``[kv_heads, group, n, n]``."""
        q, k = self.q[layer].astype(np.float64), self.k[layer].astype(np.float64)
        q = q.reshape(self.kv_heads, self.group, *q.shape[1:])[:, :, : self.n]
        scores = q @ k[:, None, : self.n].swapaxes(-1, -2) / q.shape[-1] ** 0.5
        exps = np.exp(scores) * np.tri(self.n)
        return exps / exps.sum(-1, keepdims=True)

    def projected(self, layer: int) -> np.ndarray:
        """v_j W_O^g for every entry, float64 ``[kv_heads, group, n, hidden]``."""
        v = self.v[layer, :, None, : self.n].astype(np.float64)
        return v @ self.w_o[layer].astype(np.float64)

    # The rest is kvevict.engine.session.Decoder. Tokens beyond all are the first ones over again.
    def embed(self, ids):
        return framework.zeros([1, len(ids), 1])

    def project(self, layer, hidden, start):
        rows = np.arange(start, start + hidden.shape[1]) % self.q.shape[2]
        return tuple(tensor(x[layer][None][:, :, rows]) for x in (self.q, self.k, self.v))

    def rotary(self, layer, start, tokens):
        return None

    def finish_layer(self, layer, hidden, mixed):
        return hidden

    def logits(self, hidden):
        return framework.zeros([1])

    def output_projection(self, layer):
        return tensor(self.w_o[layer])


def run(policy: Policy, prompt: Prompt, example: int = 0) -> Session:
    """The session after the prompt, positions recorded."""
    ids = [1] * prompt.n
    return prefill(prompt, ids, [policy], example, record=True, repetition=REPETITION)[0]


def kept(session: Session, prompt: Prompt) -> list[list[list[int]]]:
    """Positions kept of the prompt, by layer and kv head.

    They are in range, in order and unique, and the keys and values beside them are theirs.
    """
    result = []
    for index, layer in enumerate(session.cache.layers):
        ends = np.cumsum(layer.lengths)
        assert list(layer.keys.shape) == list(layer.values.shape) == [ends[-1], prompt.k.shape[-1]]
        heads = np.split(layer.positions.numpy(), ends[:-1])
        for h, positions in enumerate(heads):
            assert (np.diff(positions) > 0).all()
            assert ((positions >= 0) & (positions < prompt.n)).all()
            rows = slice(ends[h] - layer.lengths[h], ends[h])
            np.testing.assert_array_equal(layer.keys[rows].numpy(), prompt.k[index, h, positions])
            np.testing.assert_array_equal(layer.values[rows].numpy(), prompt.v[index, h, positions])
        result.append([positions.tolist() for positions in heads])
    return result


def held(session: Session, prompt: Prompt, layer: int) -> list[list[int]]:
    """Positions that a layer's heads hold in prefix and tail, found by their keys."""
    cache = session.cache.layers[layer]
    result, row = [], 0
    for h, length in enumerate(cache.lengths):
        index = {key.tobytes(): j for j, key in enumerate(prompt.k[layer, h])}
        keys = list(cache.keys[row : row + length].numpy())
        keys += list(cache.tail_keys[h, : cache.tail].numpy()) if cache.tail else []
        result.append([index[key.tobytes()] for key in keys])
        row += length
    return result


def grow(sums: list[dict[int, float]], prompt: Prompt, layer: int, step: int) -> list[dict]:
    """Attention received by the entries that each head holds, once the token at ``step`` is in."""
    result = []
    for h, own in enumerate(sums):
        positions = [*own, step]
        keys = prompt.k[layer, h, positions].astype(np.float64)
        members = slice(h * prompt.group, (h + 1) * prompt.group)
        scores = prompt.q[layer, members, step].astype(np.float64) @ keys.T / keys.shape[1] ** 0.5
        weights = (np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)).sum(0)
        result.append({j: own.get(j, 0.0) + w for j, w in zip(positions, weights)})
    return result


def shrink(sums: dict[int, float], count: int, recent: int = 0) -> dict[int, float]:
    """The ``count`` entries that received most, the last ``recent`` of them in any case."""
    positions = list(sums)
    left = choose(np.array(list(sums.values())), count, 0, recent)
    return {positions[i]: sums[positions[i]] for i in left}


def best(scores: np.ndarray, count: int, among: Iterable[int]) -> set[int]:
    """The positions of the ``count`` largest scores; of equals, the lower ones."""
    return set(sorted(among, key=lambda j: (-scores[j], j))[:count])


def choose(scores: np.ndarray, budget: int, sinks: int, recent: int) -> list[int]:
    """Sinks, recent tokens and the best of the rest: ``budget`` positions in order."""
    n = len(scores)
    rest = range(sinks, n - recent)
    return sorted(
        {*range(sinks), *range(n - recent, n)} | best(scores, budget - sinks - recent, rest)
    )


def pool(scores: np.ndarray, window: int, kernel: int) -> np.ndarray:
    """Mean over ``kernel`` neighbours among the entries before the window, zeros outside."""
    n = len(scores)
    before = scores[: max(0, n - window)]
    padded = np.pad(before, kernel // 2)
    means = [padded[j : j + kernel].sum() / kernel for j in range(len(before))]
    return np.array(means + [0.0] * (n - len(before)))


def shares(scores: np.ndarray, base: int, floor: int) -> list[int]:
    """Ada-KV's entries for each head: ``floor`` each, the rest by one ranking of what is left."""
    heads, n = scores.shape
    sure = {(h, j) for h in range(heads) for j in best(scores[h], floor, range(n))}
    rest = [(h, j) for h in range(heads) for j in range(n) if (h, j) not in sure]
    rest.sort(key=lambda entry: (-scores[entry], entry))
    owners = [h for h, _ in [*sure, *rest[: base * heads - len(sure)]]]
    return [owners.count(h) for h in range(heads)]
