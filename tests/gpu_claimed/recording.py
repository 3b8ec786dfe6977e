"""Paddle's CUDA graph, as far as a CPU can show it: what is captured is done again at a replay.

While a graph is captured, each operation is noted with the tensors it was given and those it made.
A replay does the same on the same memory and writes where the first results lie. What Python
worked out in between stays as it was, and what the host would have to wait for raises an error: so
on a GPU. Unlike there, what is noted runs at once, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import paddle
from paddle.device.cuda import graphs

# What of the tape launches nothing on a GPU.
VIEWS = {
    *("reshape", "transpose", "squeeze", "unsqueeze", "slice", "strided_slice", "empty"),
    *("unbind", "split", "split_with_num", "view_shape", "__getitem__", "full_int_array"),
}


class Graph:
    """In place of ``paddle.base.core.CUDAGraph``, under Paddle's own Python class.

    Attributes:
        captured: all graphs so far.
        tape: of each operation its name, itself, what it was given, by name too, and its result.
        replays: how often it was replayed.
    """

    captured: ClassVar[list[Graph]] = []
    _capturing: list | None = None
    _inside = False  # an operation that is made of others

    def __init__(self, tape: list) -> None:
        self.tape, self.replays = tape, 0

    @classmethod
    def begin_capture_with_pool_id(cls, place: Any, mode: int, pool: int | None) -> None:
        assert place.is_gpu_place() and cls._capturing is None
        cls._capturing = []

    @classmethod
    def end_capture(cls) -> Graph:
        cls.captured.append(cls(cls._capturing))
        cls._capturing = None
        return cls.captured[-1]

    def replay(self) -> None:
        self.replays += 1
        for _, operation, args, kwargs, result in self.tape:
            _write(operation(*args, **kwargs), result)

    @property
    def launches(self) -> list[str]:
        """Names of the operations that a GPU would be told to do."""
        return [
            name
            for name, _, args, _, result in self.tape
            if name not in VIEWS
            and (name != "contiguous" or result.data_ptr() != args[0].data_ptr())
        ]


def install() -> None:
    """Let Paddle find the graph, and forbid what waits for the device while one is captured."""
    graphs.CoreCUDAGraph = Graph
    for name in ("numpy", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        setattr(paddle.Tensor, name, _forbidden(getattr(paddle.Tensor, name)))
    paddle.to_tensor = _forbidden(paddle.to_tensor)


def noted(operation: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same, noted by a graph that is being captured."""

    @wraps(operation)
    def call(*args: Any, **kwargs: Any) -> Any:
        if Graph._capturing is None or Graph._inside:
            return operation(*args, **kwargs)
        Graph._inside = True
        try:
            result = operation(*args, **kwargs)
        finally:
            Graph._inside = False
        Graph._capturing.append((name, operation, args, kwargs, result))
        return result

    return call


def _forbidden(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if Graph._capturing is not None and not Graph._inside:
            raise OSError("operation not permitted when stream is capturing")
        return call(*args, **kwargs)

    return checked


def _write(new: Any, old: Any) -> None:
    """Put a result where the first one lies."""
    if isinstance(new, (list, tuple)):
        for pair in zip(new, old):
            _write(*pair)
    elif isinstance(new, paddle.Tensor) and new.data_ptr() != old.data_ptr():
        assert new.shape == old.shape and new.is_contiguous() and old.is_contiguous()
        size = new.element_size() * int(new.size)
        ctypes.memmove(old.data_ptr(), new.data_ptr(), size)
