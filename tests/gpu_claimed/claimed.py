"""Paddle's CPU tensors claim to lie on a GPU. For processes of their own: nothing takes it back.

What the library asks a tensor or Paddle for is answered as on a card that has all it can use. The
operations run on the CPU: those without a kernel for half precision go through float32 and round
their result, and what only a GPU has is done by NumPy (:mod:`operators`). A CUDA graph notes what
is launched (:mod:`recording`).
"""

from __future__ import annotations

from functools import wraps
from types import BuiltinFunctionType
from typing import Any, Callable

import operators
import paddle
import recording
from operators import HALVES, called
from paddle import _C_ops
from paddle.base import core

NAME = "claimed GPU"
METHODS = ("clone", "contiguous", "copy_")  # that do something, and are written in C++


class _Place(core.CPUPlace):
    """Where these tensors lie, for whoever asks in Python."""

    def __str__(self) -> str:
        return "cuda:0"

    def is_cpu_place(self) -> bool:
        return False

    def is_gpu_place(self) -> bool:
        return True

    def gpu_device_id(self) -> int:
        return 0


def claim(capability: tuple[int, int] = (8, 0)) -> None:
    """From now on every tensor is on a GPU of that compute capability."""
    place = _Place()
    for name, value in {"place": place, "device": place, "is_cuda": True}.items():
        setattr(paddle.Tensor, name, property(lambda tensor, value=value: value))
    cuda = paddle.device.cuda
    answers = {
        (paddle, "get_device"): "gpu:0",
        (paddle, "set_device"): place,
        (paddle, "CUDAPlace"): place,
        (paddle.amp, "is_bfloat16_supported"): True,
        (cuda, "get_device_capability"): capability,
        (cuda, "get_device_name"): NAME,
        (cuda, "max_memory_allocated"): 1 << 30,
    }
    for (owner, name), answer in answers.items():
        setattr(owner, name, lambda *args, answer=answer: answer)
    for name in dir(_C_ops):
        if isinstance(getattr(_C_ops, name), BuiltinFunctionType):
            _replace(_C_ops, name, operators.ALL.get(name))
    for name, value in [*vars(paddle.Tensor).items()]:
        if type(value).__name__ == "method_descriptor" and (name in METHODS or name[:2] == "__"):
            _replace(paddle.Tensor, name)
    recording.install()


def interpret() -> None:
    """Have Triton's interpreter take Paddle's tensors, and count the kernels' calls."""
    from kvevict import kernels  # imports Triton through Paddle's compatibility layer

    from triton.runtime.interpreter import GridExecutor  # isort: skip

    # The tensors are on the CPU: no copies to a device and back, which need PyTorch's storages.
    GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    GridExecutor._restore_args_dev = lambda self, *args: None
    GridExecutor.__call__ = recording.noted(GridExecutor.__call__, "kernel")

    def counted(name: str):
        kernel = getattr(kernels, name)

        def call(*args, **kwargs):
            called[name] += 1
            return kernel(*args, **kwargs)

        return call

    for name in kernels.__all__:
        setattr(kernels, name, counted(name))


def _replace(owner: Any, name: str, by: Callable[..., Any] | None = None) -> None:
    operation = by or _through_float32(getattr(owner, name))
    setattr(owner, name, recording.noted(operation, name))


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
    if not isinstance(result, paddle.Tensor) or not result._is_initialized():
        return result  # an output that was not asked for has no memory
    return result.astype(dtype) if result.dtype == paddle.float32 else result
