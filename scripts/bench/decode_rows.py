"""Rows of bench_decode.py about a step of this library."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from unittest.mock import patch

import torch
from bench_setup import GIB, Setup

from kvevict.cache import KVCache, LayerCache
from kvevict.engine import Batch, cuda_graph
from kvevict.engine.session import Session

WARM = 3  # steps before those that count: compiling, recording, a first replay
ROOM = 128  # tokens that each sequence's tail is made for where memory is counted
PRODUCTS = ("_one_row", "_few_rows", "gemm", "gemv", "cutlass", "splitk", "nvjet", "cublas")


def lengths_of(setup: Setup, tokens: int, kind: str, seed: int = 0) -> list[list[int]]:
    """Entries of each head in each layer, as the methods leave them."""
    heads, layers = setup.decoder.kv_heads, setup.layers
    torch.manual_seed(seed)
    if kind == "full":
        return [[tokens] * heads] * layers
    if kind == "equal":  # NACL, SnapKV
        return [[tokens // 5] * heads] * layers
    if kind == "layer":  # Ada-KV: a fifth of the layer's budget shared equally, the rest by need
        draw = torch.distributions.Dirichlet(torch.full((heads,), 2.0))
        share = (0.2 / heads + 0.8 * draw.sample((layers,))) * heads * (tokens // 5)
    else:  # LaProx: one budget for all heads of all layers
        draw = torch.distributions.Dirichlet(torch.full((layers * heads,), 1.0))
        share = (draw.sample() * layers * heads * (tokens // 20)).reshape(layers, heads)
    return share.clamp(max=tokens).int().tolist()


def filled(setup: Setup, tokens: int, lengths: list[list[int]]) -> Session:
    """A session that has seen so many tokens and holds random entries."""
    model, cache = setup.model, KVCache(seen=tokens)
    for heads in lengths:
        shape = (sum(heads), setup.decoder.head_dim)
        keys, values = (
            torch.randn(shape, device=model.device, dtype=model.dtype) * scale for scale in (0.3, 1)
        )
        cache.layers.append(LayerCache(keys, values, list(heads)))
    session = Session(setup.decoder, cache)
    session.logits = torch.randn(model.config.vocab_size, device=model.device)
    return session


def steps(setup: Setup) -> Iterator[dict]:
    """A step of one sequence and of several, in a graph and in the loop."""
    for label, sequences, kind in (
        ("full cache", 1, "full"),
        ("20%, equal heads (NACL, SnapKV)", 1, "equal"),
        ("20%, ragged in a layer (Ada-KV)", 1, "layer"),
        ("5%, ragged over the model (LaProx)", 1, "model"),
        ("20%, equal heads", 10, "equal"),
        ("5%, ragged over the model", 100, "model"),
    ):
        sequences = sequences if setup.on_gpu else min(sequences, 3)
        each = (lengths_of(setup, setup.tokens, kind, seed) for seed in range(sequences))
        sessions = [filled(setup, setup.tokens, lengths) for lengths in each]
        held = sum(session.cache.nbytes for session in sessions)
        loop, loop_ms, _ = timed(setup, fork(sessions), 0)
        graph, graph_ms, recording_ms = timed(setup, fork(sessions), cuda_graph.WORTH)
        yield {
            "label": label,
            "sequences": sequences,
            "cache_gib": held / GIB,
            "floor_ms": setup.floor_ms(held),
            "graph_ms": graph_ms,
            "loop_ms": loop_ms,
            "recording_ms": recording_ms,
            "equal": bool(torch.equal(loop, graph)),
        }
        del sessions, loop, graph
        setup.free()


def fork(sessions: list[Session]) -> list[Session]:
    return [session.fork() for session in sessions]


class NotRecorded(RuntimeError):
    """A step that was to be replayed from a CUDA graph could not be recorded: what a lack of memory
    leads to, and what would be timed is the loop."""


def timed(setup: Setup, sessions: list[Session], expected: int) -> tuple:
    """A batch that expects so many steps.

    Returns:
        The last logits, median milliseconds of a step, and those of the second one.
    """
    for session in sessions:
        session.reserve(max(ROOM, setup.steps + WARM))
    logits, times = stepped(setup, Batch(sessions, expected), setup.steps)
    return logits, statistics.median(times[WARM:]), times[1]


def stepped(setup: Setup, batch: Batch, steps: int) -> tuple[torch.Tensor, list[float]]:
    """Steps after some to warm up: the last logits, milliseconds of each, its tokens' choice too.

    Raises:
        NotRecorded: see there.
    """
    times = []
    logits = torch.stack([session.logits for session in batch.sessions])
    for _ in range(WARM + steps):
        start = time.perf_counter()
        logits = batch.step(logits.argmax(dim=-1).tolist())
        setup.wait()
        times.append((time.perf_counter() - start) * 1e3)
    if setup.on_gpu and batch.steps >= cuda_graph.WORTH and not cuda_graph._right["torch"]:
        cuda_graph._right["torch"] = True  # the next batch may be recorded all the same
        raise NotRecorded
    return logits.clone(), times


def launches(setup: Setup) -> Iterator[dict]:
    """What a graph's kernels take, with and without what this library does to have fewer."""
    whole = {"fused": True, "short": True, "joined": True, "within": True}
    variants = {
        "": whole,
        ", norms and additions beside products": {**whole, "within": False},
        ", chunks of 1,024 entries": {**whole, "short": False},
        ", a product for each projection": {**whole, "joined": False},
        ", PyTorch's kernels in a layer": {**whole, "fused": False, "joined": False},
        ", none of these": dict.fromkeys(whole, False),
    }
    for kind, label in (("equal", "20%, equal heads"), ("model", "5%, ragged over the model")):
        session = filled(setup, setup.tokens, lengths_of(setup, setup.tokens, kind))
        for name, variant in variants.items():
            with as_before(setup, **variant):
                yield {"label": label + name, **counted(setup, session.fork())}
        del session
        setup.free()


@contextmanager
def as_before(setup: Setup, fused: bool, short: bool, joined: bool, within: bool):
    """Leave out the kernels of a layer, chunks that suit what heads hold, products of several.

    Or products that do what comes before and after them, too.
    """
    chunks = import_module("kvevict.kernels.chunks")
    arithmetic = import_module("kvevict.backends.torch.decoder")
    joined_products = import_module("kvevict.backends.torch.joined")
    original, whole = type(setup.decoder).unturned, joined_products._whole
    rows = arithmetic.row_kernels if within and fused else lambda x: None

    def turned(self, layer, hidden, start):
        q, k, v, rope = original(self, layer, hidden, start)
        return (*(arithmetic._rotate(x, *rope) for x in (q, k)), v, None)

    with (
        patch.object(chunks, "SHORTEST", chunks.SHORTEST if short else chunks.LONGEST),
        patch.object(arithmetic, "row_kernels", rows),
        patch.object(arithmetic, "kernels", arithmetic.kernels if fused else lambda x: None),
        patch.object(joined_products, "_whole", whole if joined else lambda parts: None),
        patch.object(type(setup.decoder), "unturned", original if fused else turned),
    ):
        yield


def counted(setup: Setup, session: Session) -> dict:
    """Kernels of a replay, and how long they run."""
    _, step_ms, _ = timed(setup, [session], cuda_graph.WORTH)
    if not setup.on_gpu:
        return {"step_ms": step_ms}
    replays, batch = 4, Batch([session], cuda_graph.WORTH)
    for _ in range(WARM):
        batch.step([1])
    setup.wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(replays):
            batch.step([1])
        setup.wait()
    found = [
        (event.key.lower(), event.count / replays, event.self_device_time_total / replays / 1e3)
        for event in profiler.key_averages()
        if event.self_device_time_total > 0
    ]
    products = sum(ms for name, _, ms in found if any(part in name for part in PRODUCTS))
    attention = sum(ms for name, _, ms in found if name.startswith(("_chunks", "_combine")))
    kernels, busy = sum(count for _, count, _ in found), sum(ms for *_, ms in found)
    return {
        "kernels": kernels,
        "a_layer": kernels / setup.layers,
        "busy_ms": busy,
        "products_ms": products,
        "attention_ms": attention,
        "others_ms": busy - products - attention,
        "step_ms": step_ms,
        "each": sorted(found, key=lambda row: -row[2])[:40],
    }
