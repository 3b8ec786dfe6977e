"""Rows of bench_decode.py about many sequences in a given memory: tokens a second."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from bench_setup import GIB, Setup
from decode_rows import ROOM, NotRecorded, filled, lengths_of, timed

from kvevict import InputError, build
from kvevict.engine import cuda_graph, prefill
from kvevict.engine.session import Session

SPARED = 2e9  # bytes for what a step itself needs


def rates(setup: Setup) -> Iterator[dict]:
    """As many sequences as fit beside the weights: tokens a second."""
    for label, kind in (
        ("full cache", "full"),
        ("20%, equal heads (NACL, SnapKV)", "equal"),
        ("5%, ragged over the model (LaProx)", "model"),
        ("20% in int8", "int8"),
    ):
        with limited(setup):
            make = quantised(setup) if kind == "int8" else None
            if kind == "int8" and make is None:
                yield {"label": label, "error": "no policy takes kv_dtype"}
                continue
            yield {"label": label, **rate(setup, kind, make)}
        setup.free()


def rate(setup: Setup, kind: str, make: Callable[[], Session] | None) -> dict:
    """The most sequences that the limit lets be: a few less where they turn out not to fit."""

    def session(seed: int) -> Session:
        lengths = lengths_of(setup, setup.prompt, kind, seed)
        own = make() if make else filled(setup, setup.prompt, lengths)
        own.reserve(ROOM)
        return own

    def run(count: int) -> dict:
        sessions = [session(seed) for seed in range(count)]
        held = sum(each.cache.nbytes for each in sessions)
        _, step_ms, _ = timed(setup, sessions, cuda_graph.WORTH)
        return rate_row(setup, count, held, step_ms)

    return most(setup, session(0).cache.nbytes, run)


def most(setup: Setup, one: float, run: Callable[[int], dict], less: float = 0.95) -> dict:
    """The row of as many sequences as the limit lets be.

    Args:
        one: bytes of a sequence.
        run: gives the row of so many.
        less: where they turn out not to fit, this share of them is tried.
    """
    count = max(1, int((setup.limit_bytes - SPARED * setup.on_gpu - weights(setup)) / one))
    while count:
        try:
            return run(count)
        except (torch.cuda.OutOfMemoryError, NotRecorded):
            pass
        setup.free()  # out here, where no traceback holds anything
        count = int(count * less)
    return {"error": "out of memory"}


def rate_row(setup: Setup, sequences: int, held: float, step_ms: float) -> dict:
    floor = setup.floor_ms(held)
    return {
        "sequences": sequences,
        "cache_gib": held / GIB,
        "peak_gb": setup.peak_bytes() / 1e9,
        "step_ms": step_ms,
        "floor_ms": floor,
        "tokens_s": sequences / step_ms * 1e3,
        "ceiling_tokens_s": sequences / floor * 1e3,
    }


def weights(setup: Setup) -> int:
    return sum(parameter.nbytes for parameter in setup.model.parameters())


@contextmanager
def limited(setup: Setup):
    """PyTorch's allocator refuses more than the limit."""
    if not setup.on_gpu:
        yield
        return
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, setup.limit_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def quantised(setup: Setup) -> Callable[[], Session] | None:
    """What copies a prompt that was prefilled into an int8 cache; None where there is none."""
    try:
        policy = build("snapkv", keep_ratio=0.2, min_eviction_seqlen=0, kv_dtype="int8")
    except (InputError, TypeError):
        return None
    ids = torch.randint(0, setup.model.config.vocab_size, (setup.prompt,)).tolist()
    (prompt,) = prefill(setup.decoder, ids, [policy])

    def one() -> Session:
        session = copy.copy(prompt)
        session.cache = copy.deepcopy(prompt.cache)
        return session

    return one
