"""Run every kernel on Paddle tensors in Triton's interpreter; run by test_kernel_paddle.py.

A process of its own, because PyTorch must not be loaded. Paddle's tensors are on the CPU already,
so the interpreter's copies from and to a device, which need PyTorch's storages, are left out.
"""

from __future__ import annotations

import math
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import paddle

from kvevict import kernels, noise  # imports Triton through Paddle's compatibility layer
from kvevict.attention.cached import attend_cached
from kvevict.cache import TAIL, KVCache, LayerCache
from kvevict.engine.table import Table

from triton.runtime.interpreter import GridExecutor  # isort: skip

GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
GridExecutor._restore_args_dev = lambda self, *args: None


def heads(count: int, tokens: int) -> paddle.Tensor:
    return paddle.randn([1, tokens, count, 64]).astype("float16").transpose([0, 2, 1, 3])


def close(got: paddle.Tensor, expected: np.ndarray, tolerance: float) -> None:
    error = np.linalg.norm(got.astype("float64").numpy() - expected) / np.linalg.norm(expected)
    assert error < tolerance, error


def main() -> None:
    q, k, v = heads(4, 150), heads(2, 150), heads(2, 150)
    a, b, c = (x.astype("float64").numpy() for x in (q, k, v))
    scores = np.repeat(b, 2, 1)
    scores = a @ scores.transpose(0, 1, 3, 2) / math.sqrt(64)
    exps = np.exp(scores) * np.tril(np.ones((150, 150)))
    weights = exps / exps.sum(-1, keepdims=True)

    lse = paddle.to_tensor(np.log(exps.sum(-1)).astype(np.float32))
    sums = kernels.column_statistic(q, k, lse, "sum", True)
    close(sums, weights.sum(2).reshape(1, 2, 2, 150).sum(2), 1e-5)

    scores = sums.squeeze(0)
    mask = kernels.top_k(scores, [60, 7])
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")
    for row, best, count in zip(mask.numpy(), order, (60, 7)):
        assert set(np.flatnonzero(row)) == set(best[:count])
    rows = kernels.positions(mask.reshape([-1]), 67)
    assert np.array_equal(rows.numpy(), np.flatnonzero(mask.numpy()))

    keys = [7, 2**32 - 1]
    expected = noise.uniform(keys, 3000, like=sums)
    assert np.array_equal(kernels.uniform(paddle.to_tensor(keys), 3000).numpy(), expected.numpy())

    w = paddle.randn([2, 2, 64, 90]).astype("float16")
    norms = kernels.projected_norms(v.squeeze(0), w)
    close(norms, np.linalg.norm(c[0][:, None] @ w.numpy().astype(np.float64), axis=-1), 1e-3)

    last = decode(q[:, :, -1:], k, v)
    close(last, (weights @ np.repeat(c, 2, 1))[:, :, -1:], 1e-3)
    for kv_dtype in ("int8", "fp8"):
        over_codes(q[:, :, -1:], k, v, kv_dtype)
    side_by_side(q, k, v)
    layer(q)
    print("ok")


def decode(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
    """One token over the first 140 entries, compacted, and a tail of 10, the last one written."""
    held = LayerCache.compact(k[0, :, :140], v[0, :, :140])
    held.append(k[0, :, 140:149], v[0, :, 140:149])
    held.reserve(12)
    table, tail_lens = held.device_table, paddle.to_tensor([10], dtype="int32")
    kernels.append(k[0, :, 149], v[0, :, 149], table, tail_lens)
    out = kernels.decode_attention(q[0], table, tail_lens, kernels.count_chunks([140, 140]), 12)
    return out.unsqueeze(0)


def layer(q: paddle.Tensor) -> None:
    """Norm, gate and RoPE, whose tables are made as PaddleNLP's decoder makes them."""
    x, more = (paddle.randn([3, 2, 96]).astype("float16") for _ in range(2))
    a, b, weight = (t.astype("float64").numpy() for t in (x, more, x[0, 0]))
    sums, norm = kernels.add_rms_norm(x, more, x[0, 0], 1e-5)
    close(sums, a + b, 1e-3)
    close(norm, (a + b) / np.sqrt(((a + b) ** 2).mean(-1, keepdims=True) + 1e-5) * weight, 2e-3)
    close(
        kernels.rms_norm(x, x[0, 0], 0.0),
        a / np.sqrt((a**2).mean(-1, keepdims=True)) * weight,
        1e-3,
    )
    close(kernels.gated(x, more), a / (1 + np.exp(-a)) * b, 1e-3)
    angles = np.random.default_rng().uniform(0, 6.3, (150, 32))
    cos, sin = (np.concatenate([t, t], -1) for t in (np.cos(angles), np.sin(angles)))
    first, second = np.split(q.astype("float64").numpy(), 2, axis=-1)
    expected = (
        np.concatenate([first, second], -1) * cos + np.concatenate([-second, first], -1) * sin
    )
    sin[:, :32] *= -1
    tables = (paddle.to_tensor(t).astype("float16") for t in (cos, sin))
    close(kernels.turn(q, *tables), expected, 2e-3)


def over_codes(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, kv_dtype: str) -> None:
    """One token over a quantised prefix, against plain code in float32 over the same numbers."""
    held = LayerCache.compact(k[0, :, :140], v[0, :, :140])
    held.quantise(kv_dtype)
    held.append(k[0, :, 140:], v[0, :, 140:])
    tail_lens, chunks = paddle.to_tensor([10], dtype="int32"), kernels.count_chunks([140, 140])
    got = kernels.decode_attention(
        q[0], held.device_table, tail_lens, chunks, TAIL, kv_dtype=kv_dtype
    )
    for name in ("keys", "values", "tail_keys", "tail_values"):
        setattr(held, name, getattr(held, name).astype("float32"))
    expected, _ = attend_cached(q[0].astype("float32"), held)
    close(got, expected.astype("float64").numpy(), 1e-3)


def side_by_side(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> None:
    """A token of two sequences, in places with a free one between them."""
    caches = []
    for n in (60, 130):
        layer = LayerCache.compact(k[0, :, :n], v[0, :, :n])
        layer.append(k[0, :, n : n + 5], v[0, :, n : n + 5])
        caches.append(KVCache([layer], n + 5))
    new = [paddle.concat([x[:, :, t : t + 1] for t in (140, 141, 142)]) for x in (q, k, v)]
    table = Table(caches[0], 3)
    table.put([caches[0], None, caches[1]])
    got = table.attend(0, *new, paddle.to_tensor([6, 1, 6], dtype="int32")).reshape([3, 4, 1, 64])
    for place, cache in zip((0, 2), caches):
        own, key, value = (x[place] for x in new)
        layer = cache.layers[0]
        layer.append(key, value)
        for name in ("keys", "values", "tail_keys", "tail_values"):
            setattr(layer, name, getattr(layer, name).astype("float32"))
        expected, _ = attend_cached(own.astype("float32"), layer)
        close(got[place], expected.astype("float64").numpy(), 1e-3)


if __name__ == "__main__":
    main()
