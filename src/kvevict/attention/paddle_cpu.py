"""The exponentials of a block on Paddle's CPU build, by NumPy, in place.

Paddle's CPU kernels for maximum, subtraction and exponential are neither vectorised nor threaded.
NumPy's are vectorised and release the interpreter lock, so the cores share the rows; a few rows at
a time stay in a core's own cache through all four passes.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from ..tensors import Tensor, namespace

CHUNK = 1 << 16  # scores that go through the passes together: 256 KiB


@lru_cache(maxsize=1)
def _pool() -> tuple[ThreadPoolExecutor, int]:
    workers = int(os.environ.get("OMP_NUM_THREADS", 1))
    return ThreadPoolExecutor(workers), workers


def exponentials(scores: Tensor, future: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``blockwise._exponentials``, for contiguous float32 Paddle tensors in host memory."""
    paddle = namespace(scores)
    *lead, rows, seen = scores.shape
    block = _memory(scores).reshape(-1, rows, seen)
    groups = block.shape[0]
    masked = future.numpy()
    peak = np.empty((groups, rows), np.float32)
    total = np.empty((groups, rows), np.float32)
    step = max(1, CHUNK // seen)

    def work(part: range) -> None:
        for start in part:
            some = slice(start, min(start + step, rows))
            for own, own_peak, own_total in zip(block, peak, total):
                x, highest = own[some], own_peak[some]
                np.copyto(x[:, seen - rows :], -np.inf, where=masked[some])
                x.max(axis=-1, out=highest)
                np.subtract(x, highest[:, None], out=x)
                np.exp(x, out=x)
                x.sum(axis=-1, out=own_total[some])

    chunks = range(0, rows, step)
    pool, workers = _pool()
    if workers == 1 or len(chunks) == 1:
        work(chunks)
    else:
        list(pool.map(work, (chunks[i::workers] for i in range(workers))))
    to_tensor = paddle.utils.dlpack.from_dlpack
    shape = (*lead, rows)
    return scores, to_tensor(peak).reshape(shape), to_tensor(total).reshape(shape)


def _memory(x: Tensor) -> np.ndarray:
    """The memory of a contiguous float32 host tensor, writable, without a copy."""
    return np.ctypeslib.as_array((ctypes.c_float * int(x.size)).from_address(x.data_ptr()))
