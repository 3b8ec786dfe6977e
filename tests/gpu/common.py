"""What the check of a GPU shares: framework and device, random inputs, NumPy in float64.

With KVEVICT_CHECK_DEVICE=cpu the check itself is tried where there is no GPU: Triton's interpreter
runs the kernels, the evaluation is the CPU's, and nothing is timed.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kvevict.backends import FRAMEWORKS, use_device
from kvevict.tensors import Tensor

DRY = os.environ.get("KVEVICT_CHECK_DEVICE") == "cpu"
NEEDS = () if DRY else (pytest.mark.gpu,)  # of every test here
FRAMEWORK = next((name for name, needs in FRAMEWORKS.items() if all(map(find_spec, needs))), None)
DTYPE = "float16" if DRY else "bfloat16"  # the interpreter multiplies with NumPy
ROUNDING = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}  # of a result in that type


@lru_cache
def place() -> Any:
    """The device, made current, in the framework's own words."""
    return use_device("cpu" if DRY else "gpu", None, FRAMEWORK)[0]


def framework() -> ModuleType:
    """Paddle or PyTorch, whichever this Python has, on the device."""
    place()
    return import_module(FRAMEWORKS[FRAMEWORK][0])


@lru_cache
def kernels() -> ModuleType:
    """The kernels; skips where there are none, which ``installed.py`` tells."""
    framework()
    if not find_spec("triton"):
        pytest.skip("no Triton, so no kernels")
    from kvevict import kernels

    if DRY and FRAMEWORK == "paddle":
        from triton.runtime.interpreter import GridExecutor

        # The tensors are on the CPU: no copies to a device and back, which want PyTorch's storages.
        GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
        GridExecutor._restore_args_dev = lambda self, *args: None
    return kernels


def tensor(array: np.ndarray, dtype: str) -> Tensor:
    """On the device."""
    ns = framework()
    if FRAMEWORK == "paddle":
        return ns.to_tensor(array).astype(dtype)
    return ns.tensor(array, dtype=getattr(ns, dtype), device=place())


def array(x: Tensor) -> np.ndarray:
    """In float64, on the host."""
    return x.to(framework().float64).cpu().numpy()


def heads(count: int, tokens: int, head_dim: int, dtype: str = DTYPE) -> Tensor:
    """Random ``[1, count, tokens, head_dim]``, strided as a model's projections are."""
    drawn = np.random.default_rng().standard_normal((1, tokens, count, head_dim), np.float32)
    return tensor(drawn, dtype).swapaxes(1, 2)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple:
    """Causal attention of the last queries of all keys: output, weights, log-sum-exp.

    Args:
        q: ``[1, query_heads, rows, head_dim]``.
        k, v: ``[1, kv_heads, keys, head_dim]``.

    Returns:
        ``[query_heads, rows, head_dim]``, ``[query_heads, rows, keys]``, ``[query_heads, rows]``.
    """
    (q,), group = q, q.shape[1] // k.shape[1]
    k, v = k[0].repeat(group, axis=0), v[0].repeat(group, axis=0)
    rows, keys = q.shape[1], k.shape[1]
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores = np.where(np.tri(rows, keys, keys - rows, dtype=bool), scores, -np.inf)
    peak = scores.max(-1, keepdims=True)
    lse = peak + np.log(np.exp(scores - peak).sum(-1, keepdims=True))
    weights = np.exp(scores - lse)
    return weights @ v, weights, lse[..., 0]


def error(got: Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Relative, in the Euclidean norm; NaN is below no limit."""
    got = got if isinstance(got, np.ndarray) else array(got)
    assert got.size == expected.size, (got.shape, expected.shape)
    return float(np.linalg.norm(got.reshape(expected.shape) - expected) / np.linalg.norm(expected))
