"""The products of a model's linear layers by NumPy's library, on the tensors' own memory.

Wheels of frameworks bring libraries that were made for one maker's processors; the OpenBLAS in
NumPy's knows most of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import cores
from ..environment import cpu_threads
from ..tensors import Tensor, namespace

ROWS = 1024  # the most that a thread takes at a time: what is between is many times wider


class Matrix(NamedTuple):
    """A linear layer as it is in memory: ``x @ weight + bias``.

    Attributes:
        weight: ``[in, out]``, a view.
        bias: ``[out]``, or None.
    """

    weight: np.ndarray
    bias: np.ndarray | None

    @classmethod
    def of(cls, layer: Any) -> Matrix:
        """Of Paddle's ``Linear``, which has it like that, or PyTorch's, which has the transpose."""
        weight = cores.array(layer.weight)
        if namespace(layer.weight).__name__ == "torch":
            weight = weight.T
        return cls(weight, None if layer.bias is None else cores.array(layer.bias))

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """``[rows, in]`` to ``[rows, out]``."""
        out = np.matmul(x, self.weight, out=out)
        if self.bias is not None:
            out += self.bias
        return out


def linear(layer: Any, x: Tensor) -> Tensor:
    """``x Wᵀ + b`` of float32 ``[..., in]``: ``[..., out]``."""
    matrix = Matrix.of(layer)
    return _by_rows(x, matrix.weight.shape[1], matrix)


def mlp(block: Any, x: Tensor) -> Tensor:
    """``down(silu(gate(x)) · up(x))`` of float32 ``[..., hidden]``, a thread's rows at a time."""
    gate, up, down = (Matrix.of(x) for x in (block.gate_proj, block.up_proj, block.down_proj))

    def rows(x: np.ndarray, out: np.ndarray) -> None:
        gated = gate(x)
        silu_times(gated, up(x))
        down(gated, out)

    return _by_rows(x, down.weight.shape[1], rows)


def silu_times(gate: np.ndarray, up: np.ndarray) -> None:
    """``gate [rows, n]`` becomes silu(gate) · up = gate · up / (1 + exp(−gate)); ``up`` is lost."""
    step = max(1, cores.CHUNK // gate.shape[1])
    for start in range(0, len(gate), step):
        g, u = gate[start : start + step], up[start : start + step]
        u *= g
        np.negative(g, out=g)
        np.exp(g, out=g)
        g += 1
        np.divide(u, g, out=g)


def _by_rows(x: Tensor, width: int, work: Callable) -> Tensor:
    """``work(rows, out)`` of all rows of ``[..., n]``, in threads: ``[..., width]``."""
    rows = cores.array(x).reshape(-1, x.shape[-1])
    out = np.empty((len(rows), width), np.float32)
    size = min(ROWS, math.ceil(len(rows) / cpu_threads())) or 1
    spans = [slice(start, start + size) for start in range(0, len(rows), size)]
    cores.run(lambda span: work(rows[span], out[span]), spans)
    return cores.tensor(out.reshape(*x.shape[:-1], width), like=x)
