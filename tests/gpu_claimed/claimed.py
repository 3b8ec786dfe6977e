"""Paddle's CPU tensors claim to lie on a GPU. For processes of their own: nothing takes it back.

What the library asks a tensor or Paddle for is answered as on a card that has all it can use. The
operations run on the CPU: those without a kernel for half precision go through float32 and round
their result, and flash attention, of which the CPU has none, is done by NumPy behind Paddle's own
signature, layout and padding.
"""

from __future__ import annotations

from collections import Counter
from functools import wraps
from types import BuiltinFunctionType
from typing import Any, Callable

import numpy as np
import paddle
from paddle import _C_ops
from paddle.base import core

NAME = "claimed GPU"
HALVES = (paddle.bfloat16, paddle.float16)
LSE_ROWS = 128  # Paddle's flash attention pads its log-sum-exp to a multiple of so many rows

called: Counter = Counter()  # operations without a CPU kernel, flash attention among them


class _Place(core.CPUPlace):
    """Where these tensors lie, for whoever asks in Python."""

    def __str__(self) -> str:
        return "cuda:0"

    def is_cpu_place(self) -> bool:
        return False

    def is_gpu_place(self) -> bool:
        return True


def claim(capability: tuple[int, int] = (8, 0)) -> None:
    """From now on every tensor is on a GPU of that compute capability."""
    place = _Place()
    for name, value in {"place": place, "device": place, "is_cuda": True}.items():
        setattr(paddle.Tensor, name, property(lambda tensor, value=value: value))
    cuda = paddle.device.cuda
    answers = {
        (paddle, "get_device"): "gpu:0",
        (paddle, "set_device"): place,
        (paddle.amp, "is_bfloat16_supported"): True,
        (cuda, "get_device_capability"): capability,
        (cuda, "get_device_name"): NAME,
        (cuda, "max_memory_allocated"): 1 << 30,
    }
    for (owner, name), answer in answers.items():
        setattr(owner, name, lambda *args, answer=answer: answer)
    for name in dir(_C_ops):
        if isinstance(getattr(_C_ops, name), BuiltinFunctionType):
            setattr(_C_ops, name, _through_float32(getattr(_C_ops, name)))
    for name, value in vars(paddle.Tensor).items():
        if name.startswith("__") and type(value).__name__ == "method_descriptor":
            setattr(paddle.Tensor, name, _through_float32(value))
    _C_ops.flash_attn = flash_attn


def _through_float32(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The same, and in half precision too where the CPU has no kernel for that."""

    @wraps(operation)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return operation(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            found = [x.dtype for x in args if _is_half(x)]
            in_place = operation.__name__.endswith("_") and not operation.__name__.endswith("__")
            if not found or in_place or "kernel_factory" not in str(error):
                raise
        assert len(set(found)) == 1, f"{operation.__name__} was given {set(found)} together"
        called[operation.__name__] += 1
        wide = operation(*map(_widened, args), **{k: _widened(x) for k, x in kwargs.items()})
        return _rounded(wide, found[0])

    return call


def _is_half(x: Any) -> bool:
    return isinstance(x, paddle.Tensor) and x.dtype in HALVES


def _widened(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(map(_widened, x))
    return x.astype("float32") if _is_half(x) else x


def _rounded(result: Any, dtype: paddle.dtype) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(_rounded(x, dtype) for x in result)
    wide = isinstance(result, paddle.Tensor) and result.dtype == paddle.float32
    return result.astype(dtype) if wide else result


def flash_attn(
    q: paddle.Tensor,
    k: paddle.Tensor,
    v: paddle.Tensor,
    fixed_seed_offset: None,
    attn_mask: None,
    dropout: float,
    causal: bool,
    return_softmax: bool,
    is_test: bool,
    rng_name: str,
) -> tuple:
    """Paddle's operator of this name.

    Args:
        q, k, v: ``[batch, tokens, heads, head_dim]``.

    Returns:
        The output in ``q``'s layout, no softmax, the log-sum-exp ``[batch, heads, padded tokens]``
        in float32 whose padding is NaN here, and no seed.
    """
    called["flash_attn"] += 1
    assert all(map(_is_half, (q, k, v))) and q.dtype == k.dtype == v.dtype
    assert causal and is_test and not return_softmax and not dropout
    assert q.shape[1] == k.shape[1] and q.shape[2] % k.shape[2] == 0
    group, (batch, tokens, heads, head_dim) = q.shape[2] // k.shape[2], q.shape
    queries, keys, values = (
        x.astype("float32").numpy().transpose(0, 2, 1, 3).repeat(1 if x is q else group, axis=1)
        for x in (q, k, v)
    )
    scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(head_dim)
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    peak = scores.max(-1, keepdims=True)
    weights = np.exp(scores - peak)
    total = weights.sum(-1, keepdims=True)
    padded = np.full((batch, heads, -(-tokens // LSE_ROWS) * LSE_ROWS), np.nan, np.float32)
    padded[..., :tokens] = (peak + np.log(total))[..., 0]
    out = (weights / total @ values).transpose(0, 2, 1, 3)
    return paddle.to_tensor(out).astype(q.dtype), None, paddle.to_tensor(padded), None
