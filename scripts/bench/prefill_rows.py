"""Rows of bench_decode.py about prefills: this library's beside transformers'."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from bench_setup import GIB, Setup
from gpu_timing import marked
from transformers import DynamicCache

from kvevict import build, kernels
from kvevict.engine import prefill
from kvevict.engine.prompt_eviction import Eviction

METHODS = {"full": None, "nacl": 0.2, "snapkv": 0.2, "adakv": 0.2, "laprox": 0.05, "fade": 0.05}


def prefills(setup: Setup) -> Iterator[dict]:
    """Each method's prompt and transformers', medians of some runs."""
    ids = torch.randint(0, setup.model.config.vocab_size, (setup.prompt,))
    floor = setup_floor(setup)
    runs = {"transformers, full": theirs(setup)}
    for name, ratio in METHODS.items():
        runs[f"ours, {name} {ratio or ''}".rstrip()] = ours(setup, name, ratio)
    for label, run in runs.items():
        try:
            run(ids)  # compiles kernels, some of them for this length
            found = []
            for _ in range(setup.repeats):
                setup.free()
                found.append(run(ids))
        except torch.cuda.OutOfMemoryError:
            yield {"label": label, "error": "out of memory"}
            continue
        row = {key: median(one[key] for one in found) for key in found[0]}
        if "evict_ms" in row:
            row["share"] = (row["statistics_ms"] + row["evict_ms"]) / row["prefill_s"] / 10
        yield {"label": label, "floor_s": floor, **row, "runs": found}


def setup_floor(setup: Setup) -> float:
    """Seconds for the operations of a prompt: weights, and causal attention."""
    config, n = setup.model.config, setup.prompt
    head = setup.model.lm_head.weight.numel()
    numbers = setup.weight_bytes / 2 - head
    attention = 2 * n * n * config.num_attention_heads * setup.decoder.head_dim * setup.layers
    return (2 * n * numbers + attention) / setup.flop_per_s


def ours(setup: Setup, method: str, ratio: float | None) -> Callable[[torch.Tensor], dict]:
    settings = {"min_eviction_seqlen": 0, "keep_ratio": ratio} if ratio else {}
    policy = build(method, **settings)

    def run(ids: torch.Tensor) -> dict:
        ids = ids.tolist()
        evictions = [(Eviction, "add_layer"), (Eviction, "finish")]
        columns = kernels, "column_statistic"
        with marked(columns) as statistics_ms, marked(*evictions) as evict_ms:
            setup.wait()
            start = time.perf_counter()
            (session,) = prefill(setup.decoder, ids, [policy])
            setup.wait()
            seconds = time.perf_counter() - start
            parts = {"statistics_ms": statistics_ms(), "evict_ms": evict_ms()}
        return {**measured(setup, seconds, session.cache.nbytes), **parts}

    return run


def theirs(setup: Setup) -> Callable[[torch.Tensor], dict]:
    @torch.no_grad()
    def run(ids: torch.Tensor) -> dict:
        inputs, cache = ids.unsqueeze(0).to(setup.model.device), DynamicCache()
        setup.wait()
        start = time.perf_counter()
        setup.model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        setup.wait()
        seconds = time.perf_counter() - start
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        return measured(setup, seconds, held)

    return run


def measured(setup: Setup, seconds: float, held: int) -> dict:
    peak = torch.cuda.max_memory_allocated() if setup.on_gpu else 0
    return {"prefill_s": seconds, "peak_gib": peak / GIB, "cache_gib": held / GIB}
