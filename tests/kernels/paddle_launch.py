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

    w = paddle.randn([2, 2, 64, 90])
    norms = kernels.quadratic_norms(v.squeeze(0), w @ w.transpose([0, 1, 3, 2]))
    close(norms, np.linalg.norm(c[0][:, None] @ w.numpy().astype(np.float64), axis=-1), 1e-3)

    last = decode(q[:, :, -1:], k, v)
    close(last, (weights @ np.repeat(c, 2, 1))[:, :, -1:], 1e-3)
    print("ok")


def decode(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
    """One token over the first 140 entries, compacted, and a tail of 10."""
    starts = paddle.to_tensor([0, 140, 280], dtype="int32")
    keys, values = (x[0, :, :140].reshape([-1, 64]).contiguous() for x in (k, v))
    tail_len = paddle.to_tensor([10], dtype="int32")
    tail = [x[0, :, 140:].contiguous() for x in (k, v)]
    return kernels.decode_attention(q, keys, values, starts, *tail, tail_len)


if __name__ == "__main__":
    main()
