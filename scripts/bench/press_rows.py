"""Rows of bench_decode.py about kvpress at 20%, its caches joined into a batch.

All heads keep equally many entries, so caches of several prompts can lie side by side in one of
transformers' caches, which transformers decodes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import peer_rows
import torch
from bench_setup import Setup
from decode_rows import ROOM
from pressed import places
from rate_rows import limited, most
from transformers import DynamicCache

KEPT = 0.2


def rates(setup: Setup) -> Iterator[dict]:
    """The largest batch, decoded as it is and compiled with a static cache."""
    try:
        import kvpress  # late: it patches transformers' attention
    except ImportError as error:
        yield {"label": "kvpress, SnapKV 20%", "error": f"not measured: {error}"}
        return
    prefill_s, kept = prefilled(setup, kvpress.SnapKVPress(1 - KEPT))
    group = setup.model.config.num_attention_heads // setup.decoder.kv_heads
    ways = {  # how it decodes, and how often a layer's entries are there once more
        "which concatenates": (peer_rows.concatenating, 1),
        "static cache, compiled": (peer_rows.compiled, peer_rows.REPEATED * group),
    }
    for label, (decode, times) in ways.items():

        def run(count: int, decode=decode) -> dict:
            try:
                step_ms, held = decode(setup, count, kept, setup.prompt)
            except RuntimeError as error:  # the compiler has errors of its own for it
                if "memory" not in str(error):
                    raise
                raise torch.cuda.OutOfMemoryError from None
            finally:
                torch._dynamo.reset()
            row = peer_rows.request_row(setup, count, held, step_ms, prefill_s)
            return {**row, "kept": kept}

        with limited(setup):
            one = setup.token_bytes * (kept + ROOM) * (1 + times / setup.layers)
            yield {"label": f"kvpress, SnapKV 20%, {label}", **most(setup, one, run, less=0.8)}
        peer_rows.release(setup)


@torch.no_grad()
def prefilled(setup: Setup, press: Any) -> tuple[float, int]:
    """Median seconds of a prompt with nothing beside it, and entries that each head keeps."""
    seconds = []
    for _ in range(1 + setup.repeats):  # the first loads what is loaded late
        setup.free()
        ids = torch.randint(0, setup.model.config.vocab_size, (1, setup.prompt))
        inputs, cache = ids.to(setup.model.device), DynamicCache()
        more = places(setup.prompt, setup.model.device)
        setup.wait()
        start = time.perf_counter()
        with press(setup.model):
            setup.model(
                inputs,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **more,
            )
        setup.wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), cache.layers[0].keys.shape[-2]
