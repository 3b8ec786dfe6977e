"""Rows of bench_decode.py about transformers' own decoding, whose full cache is all it has."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterator

import prefill_rows
import torch
from bench_setup import GIB, Setup
from decode_rows import ROOM, WARM
from rate_rows import limited, rate_row, weights
from transformers import Cache, DynamicCache, StaticCache

# Keys and values of a layer, repeated for every query head, where attention is given a mask: twice,
# for a graph keeps memory of its own.
REPEATED = 2
ANSWER = 256  # new tokens of a request


def steps(setup: Setup) -> Iterator[dict]:
    """A step of one sequence: the cache that concatenates, and the static one, compiled."""
    for label, run in (
        ("full cache, which concatenates", concatenating),
        ('static cache, torch.compile(mode="reduce-overhead")', compiled),
    ):
        step_ms, held = run(setup, 1, setup.tokens)
        yield {
            "label": label,
            "sequences": 1,
            "cache_gib": held / GIB,
            "floor_ms": setup.floor_ms(held),
            "loop_ms": step_ms,
        }
        release(setup)


def rates(setup: Setup) -> Iterator[dict]:
    """The largest batch of the static, compiled cache."""
    config = setup.model.config
    group = config.num_attention_heads // config.num_key_value_heads
    one = setup.token_bytes * (setup.prompt + ROOM)
    room = setup.limit_bytes - weights(setup) - 2e9 * setup.on_gpu
    count = max(1, int(room / (one + REPEATED * group * one / setup.layers)))
    run = prefill_rows.theirs(setup)
    prefill_s = statistics.median(
        run(torch.randint(0, config.vocab_size, (setup.prompt,)))["prefill_s"]
        for _ in range(setup.repeats)
    )
    while count:
        with limited(setup):
            try:
                step_ms, held = compiled(setup, count, setup.prompt)
                row = request_row(setup, count, held, step_ms, prefill_s)
            except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
                if "memory" not in str(error):
                    raise
                row = {"error": f"out of memory with {count} sequences"}
        yield {"label": "static cache, compiled", **row}
        release(setup)
        if "error" not in row:
            return
        count = count * 4 // 5


def request_row(setup: Setup, count: int, held: float, step_ms: float, prefill_s: float) -> dict:
    """A row of rates, with requests a second: of so many prompts read one after the other, and of
    the answers' steps as they are at first."""
    seconds = count * prefill_s + ANSWER * step_ms / 1e3
    requests = {"prefill_s": prefill_s, "requests_s": count / seconds}
    return {**rate_row(setup, count, held, step_ms), **requests}


def release(setup: Setup) -> None:
    torch._dynamo.reset()
    setup.free()


def concatenating(
    setup: Setup, sequences: int, held: int, seen: int | None = None
) -> tuple[float, int]:
    """transformers as ``generate`` runs it, kernel by kernel; see :func:`compiled`."""
    cache = DynamicCache()
    for layer in range(setup.layers):
        cache.update(*entries(setup, sequences, held), layer)
    return timed(setup, setup.model, cache, sequences, held, seen)


def compiled(setup: Setup, sequences: int, held: int, seen: int | None = None) -> tuple[float, int]:
    """transformers with a static cache, compiled so that its launches cost least.

    Args:
        held: entries of each head.
        seen: tokens of the prompt, if others than are held.
    """
    model, config = setup.model, setup.model.config
    cache = StaticCache(config=config, max_cache_len=held + ROOM)
    shape = (config.num_key_value_heads, config.head_dim, model.dtype, model.device)
    cache.early_initialization(sequences, *shape)
    for layer in cache.layers:
        for entries in (layer.keys, layer.values):
            entries[:, :, :held].normal_()
        length = getattr(layer, "cumulative_length", None)  # of later versions
        if isinstance(length, torch.Tensor):
            length.fill_(held)
        elif length is not None:
            layer.cumulative_length = held
    mode = "reduce-overhead" if setup.on_gpu else "default"
    run = torch.compile(model, mode=mode, backend="inductor" if setup.on_gpu else "eager")
    return timed(setup, run, cache, sequences, held, seen)


def entries(setup: Setup, sequences: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's keys and values."""
    model, config = setup.model, setup.model.config
    shape = (sequences, config.num_key_value_heads, tokens, config.head_dim)
    return tuple(torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))


@torch.no_grad()
def timed(
    setup: Setup,
    run: Callable,
    cache: Cache,
    sequences: int,
    held: int,
    seen: int | None,
) -> tuple[float, int]:
    """Milliseconds of a step, the choice of its token included, and bytes of the cache."""
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    device, times = setup.model.device, []
    known = inspect.signature(type(setup.model).forward).parameters
    token = torch.zeros((sequences, 1), dtype=torch.int64, device=device)
    for step in range(setup.steps + WARM):
        start = time.perf_counter()
        more = {}
        if "cache_position" in known:  # where the entry goes, whatever its token's position
            more["cache_position"] = torch.tensor([held + step], device=device)
        name = "past_key_values" if "past_key_values" in known else "cache"
        places = torch.full((sequences, 1), (seen or held) + step, device=device)
        out = run(token, position_ids=places, use_cache=True, **{name: cache}, **more)
        token = out.logits[:, -1:].argmax(-1).clone()
        token.tolist()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[WARM:]), size
