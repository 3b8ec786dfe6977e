"""Device times and a card's two ceilings, for the benchmarks under PyTorch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from triton.testing import do_bench


def milliseconds(run, *args, **kwargs) -> float:
    """Median device time of a call, replayed from a CUDA graph with a cold L2 cache."""
    run(*args, **kwargs)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = run(*args, **kwargs)  # noqa: F841 (the graph writes to it)
    return do_bench(graph.replay, warmup=25, rep=100, return_mode="median")


def behind(run) -> float:
    """Median device time of what is launched while the GPU is busy, as it is in a prefill."""
    run()
    times, scratch = [], torch.empty(1 << 28, device="cuda", dtype=torch.int8)
    for _ in range(10):
        torch.cuda.synchronize()
        torch.cuda._sleep(40_000_000)  # cycles: long enough for the host to get ahead
        scratch.zero_()  # nothing is left in the L2 cache
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return statistics.median(times)


def on_host(run, *args) -> float:
    """Median milliseconds of a call that the host takes part in."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run(*args)
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


@contextmanager
def marked(*functions: tuple[object, str]) -> Iterator[Callable[[], float]]:
    """Device time between the ends of every call of some functions, each an owner and a name.

    Yields:
        What waits for the device and sums it up, in ms; 0 where there is no GPU.
    """
    marks: list[list[torch.cuda.Event]] = []

    def wrapped(function: Callable) -> Callable:
        def call(*args, **kwargs):
            marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            first, last = marks[-1]
            first.record()
            result = function(*args, **kwargs)
            last.record()
            return result

        return call

    def total() -> float:
        if marks:
            torch.cuda.synchronize()
        return sum(first.elapsed_time(last) for first, last in marks)

    with ExitStack() as stack:
        for owner, name in functions if torch.cuda.is_available() else ():
            stack.enter_context(patch.object(owner, name, wrapped(getattr(owner, name))))
        yield total


def ceilings() -> dict[str, float]:
    """Bytes a second of a kernel that reads and writes, operations a second of a matrix product."""
    source = torch.randn(1 << 31, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = milliseconds(torch.neg, source, out=target)  # a graph would copy by another engine
    del source, target
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = milliseconds(torch.matmul, a, b)
    return {"bytes_per_s": 2 * 2**32 / copy * 1e3, "flop_per_s": 2 * 8192**3 / product * 1e3}
