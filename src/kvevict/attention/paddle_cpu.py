"""The exponentials of a block on Paddle's CPU build, by NumPy, in place.

Paddle's CPU kernels for maximum, subtraction and exponential are not vectorised; NumPy's are. A few
rows at a time stay in a core's own cache through all four passes.
"""

from __future__ import annotations

import ctypes

import numpy as np

from ..tensors import Tensor, namespace

CHUNK = 1 << 17  # scores that go through the passes together: 512 KiB


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
    for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        for own, own_peak, own_total in zip(block, peak, total):
            x, highest = own[some], own_peak[some]
            np.copyto(x[:, seen - rows :], -np.inf, where=masked[some])
            x.max(axis=-1, out=highest)
            np.subtract(x, highest[:, None], out=x)
            np.exp(x, out=x)
            x.sum(axis=-1, out=own_total[some])
    to_tensor = paddle.utils.dlpack.from_dlpack
    shape = (*lead, rows)
    return scores, to_tensor(peak).reshape(shape), to_tensor(total).reshape(shape)


def _memory(x: Tensor) -> np.ndarray:
    """The memory of a contiguous float32 host tensor, writable, without a copy."""
    return np.ctypeslib.as_array((ctypes.c_float * int(x.size)).from_address(x.data_ptr()))
