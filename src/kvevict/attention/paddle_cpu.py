"""The exponentials of a block on Paddle's CPU build, by NumPy.

Paddle's CPU kernels for maximum, subtraction and exponential are neither vectorised nor threaded;
NumPy's are vectorised and release the interpreter lock, so two halves of a block run on two cores.
Measured on two cores of an AMD EPYC: 0.6 ns an element against 2.9.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from ..tensors import Tensor, namespace


@lru_cache(maxsize=1)
def _pool() -> tuple[ThreadPoolExecutor, int]:
    workers = int(os.environ.get("OMP_NUM_THREADS", 1))
    return ThreadPoolExecutor(workers), workers


def exponentials(scores: Tensor, future: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``blockwise._exponentials``, for float32 Paddle tensors in host memory."""
    paddle = namespace(scores)
    shape = list(scores.shape)
    rows, seen = shape[-2:]
    source = np.from_dlpack(scores.detach()).reshape(-1, rows, seen)
    exps = np.empty(source.shape, np.float32)
    peak = np.empty(source.shape[:2], np.float32)
    total = np.empty(source.shape[:2], np.float32)
    masked = np.from_dlpack(future.int()).astype(bool)

    def work(part: slice) -> None:
        block, own = exps[:, part], source[:, part]
        # Masked scores may take part in the peak: it only has to be near the largest.
        own.max(axis=-1, out=peak[:, part])
        np.subtract(own, peak[:, part, None], out=block)
        np.exp(block, out=block)
        np.copyto(block[:, :, -rows:], 0.0, where=masked[part])
        block.sum(axis=-1, out=total[:, part])

    pool, workers = _pool()
    edges = [rows * i // workers for i in range(workers + 1)]
    parts = [slice(a, b) for a, b in zip(edges, edges[1:]) if a < b]
    list(pool.map(work, parts))

    def tensor(array: np.ndarray) -> Tensor:
        return paddle.utils.dlpack.from_dlpack(array).reshape(*shape[:-2], *array.shape[1:])

    return tensor(exps), tensor(peak), tensor(total)
