"""The longest prompt that fits a memory limit, with Llama-3.1-8B's shape on one GPU.

    python scripts/bench/bench_longest.py --limits 80,141 --out longest.json

A prompt fits when its prefill and a first decoded token do. Prefill runs the library's own path,
with every tensor that it allocates at its size, and the policies at work; to take seconds and not
hours, three things are not computed: attention returns a copy of the queries and random column
statistics, and of each layer only the first chunk of tokens passes through projections and MLP.
The first lines compare the stand-in's peak with that of a true prefill.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from random_llama import GIB, random_llama

from kvevict import build
from kvevict.attention import Output, attend
from kvevict.backends.torch.decoder import TorchDecoder
from kvevict.engine import prefilling

STEP = 16384  # lengths are multiples of it
METHODS = ("full", "nacl:0.2", "laprox:0.05")


class StandIn(TorchDecoder):
    """A layer's first chunk goes through; the others take its result's place in memory."""

    def project(self, layer, hidden, start):
        if start == 0 or hidden.shape[1] != prefilling.CHUNK:
            self._first = super().project(layer, hidden, start)
        else:
            self._rotations(layer, start, hidden)  # kept for all layers
        # A copy: each chunk of a true prefill has tensors of its own.
        return tuple(x.clone() for x in self._first)

    def finish_layer(self, layer, hidden, mixed):
        if getattr(self, "_completed", None) != layer or hidden.shape[1] == 1:
            self._completed = layer
            return super().finish_layer(layer, hidden, mixed)
        return hidden.clone()


def no_attention(q, k, v, statistics=()) -> Output:
    """What :func:`kvevict.attention.attend` would return, in size."""
    heads, group, keys = k.shape[1], q.shape[1] // k.shape[1], k.shape[2]
    lse = torch.zeros(q.shape[:3], device=q.device)
    columns = {
        s: torch.rand(1, heads if s.per_kv_head else heads * group, keys, device=q.device)
        for s in statistics
    }
    return Output(q.clone(), lse, columns)


def main() -> None:
    """Search and print, one line a limit and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limits", default="80,141", help="GiB; more than the card has is all")
    parser.add_argument("--layers", type=int, default=32, help="fewer for a trial")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = random_llama(args.layers)
    whole = torch.cuda.get_device_properties(0).total_memory
    rows: list[dict] = []
    peak(TorchDecoder(model), STEP, METHODS[1])  # what libraries allocate once
    for method in METHODS:
        peaks = {}
        for name, decoder in (("true", TorchDecoder(model)), ("stand-in", StandIn(model))):
            prefilling.attend = attend if name == "true" else no_attention
            peaks[name] = peak(decoder, 2 * STEP, method)
        print(f"{method}, {2 * STEP} tokens: peak {peaks['true'] / GIB:.3f} GiB, ", end="")
        print(f"stand-in {peaks['stand-in'] / GIB:.3f} GiB", flush=True)
        rows.append({"method": method, "tokens": 2 * STEP, "peaks": peaks})
    decoder = StandIn(model)
    for limit in [float(text) for text in args.limits.split(",")]:
        share = min(1.0, limit * GIB / whole)
        torch.cuda.set_per_process_memory_fraction(share)
        for method in METHODS:
            length, held = longest(decoder, method, share * whole)
            row = {"method": method, "limit_bytes": int(share * whole), "longest": length}
            rows.append({**row, "peak_bytes": held})
            print(f"{share * whole / GIB:.1f} GiB, {method}: {length} tokens, peak ", end="")
            print(f"{held / GIB:.1f} GiB", flush=True)
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1) + "\n")


def longest(decoder, method: str, limit: float) -> tuple[int, int]:
    """The last multiple of STEP that fits and its peak; memory grows linearly, so begin there."""
    few, more = (peak(decoder, n * STEP, method) for n in (4, 8))
    guess = int(8 + (limit - more) / ((more - few) / 4))
    held = peak(decoder, guess * STEP, method)
    step = 1 if held else -1
    while True:
        other = peak(decoder, (guess + step) * STEP, method)
        if step > 0 and not other:
            return guess * STEP, held
        guess, held = guess + step, other
        if step < 0 and other:
            return guess * STEP, held


def peak(decoder, tokens: int, method: str) -> int:
    """Most bytes held while a prompt is prefilled and one token decoded; 0 if out of memory."""
    name, _, ratio = method.partition(":")
    policy = build(name, **({"keep_ratio": float(ratio)} if ratio else {}))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        (session,) = prefilling.prefill(decoder, [7] * tokens, [policy])
        session.extend([7])
    except torch.cuda.OutOfMemoryError:
        return 0
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
