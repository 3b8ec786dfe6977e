"""Llama-3.1-8B's shape end to end on one GPU under PyTorch, with random weights.

    python scripts/bench/bench_gpu.py --lengths 32768,131072 --peers --out end_to_end.json

Prefill, what eviction takes of it, peak memory, cache and decoding, for this library's methods and
with --peers for transformers' own cache and, where it is installed, kvpress. Each is run several
times in turn; medians are printed, and every run is in the file. Random weights do not change what
is measured: the work does not depend on them, but for how ragged the heads become. Decoding is
launched kernel by kernel here, for all alike; ``bench_decode.py`` has the CUDA graph.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
import transformers
from gpu_timing import marked
from pressed import clear_masks, places
from random_llama import GIB, random_llama
from transformers import DynamicCache, LlamaForCausalLM

from kvevict import build, kernels
from kvevict.backends.torch.decoder import TorchDecoder
from kvevict.engine import prefill
from kvevict.engine.prompt_eviction import Eviction

WRAPPERS = {"snapkv": None, "criticalkv": "CriticalKVPress", "adakv": "AdaKVPress"}  # kvpress's


def main() -> None:
    """Measure and print one table for each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument(
        "--methods", default="full,nacl:0.2,snapkv:0.2,adakv:0.2,laprox:0.05,fade:0.05,h2o:0.2"
    )
    parser.add_argument("--peers", action="store_true", help="measure others' libraries as well")
    parser.add_argument("--new_tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit_s", type=float, default=480, help="start nothing after this")
    parser.add_argument("--layers", type=int, default=32, help="fewer for a trial")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began = time.monotonic()
    model = random_llama(args.layers)
    rows: list[dict] = []
    versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}, {args.layers} layers")
    for length in [int(n) for n in args.lengths.split(",")]:
        ids = torch.randint(1000, 100_000, (length,), generator=torch.Generator().manual_seed(0))
        runs = dict(runners(model, args.methods.split(","), args.peers))
        measured: dict[str, list[dict]] = {label: [] for label in runs}
        for run in runs.values():  # compiles kernels
            attempt(model, run, ids[:4096].tolist(), 1)
        for _ in range(args.repeats):
            for label, run in runs.items():
                if time.monotonic() - began < args.limit_s:
                    measured[label].append(attempt(model, run, ids.tolist(), args.new_tokens))
        rows += [{"length": length, "label": k, "runs": v} for k, v in measured.items() if v]
        print_table(length, measured)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


def runners(model: LlamaForCausalLM, methods: list[str], peers: bool):
    """``(label, function)`` pairs.

    A function takes ids and gives its cache's bytes, the milliseconds of its parts and a step.
    """
    decoder = TorchDecoder(model)

    def ours(method: str, settings: dict):
        policy = build(method, **settings)

        def run(ids: list[int]):
            evictions = (Eviction, "add_layer"), (Eviction, "finish")
            columns = kernels, "column_statistic"
            with marked(*evictions) as evict_ms, marked(columns) as statistics_ms:
                (session,) = prefill(decoder, ids, [policy])
            parts = {"evict_ms": evict_ms(), "statistics_ms": statistics_ms()}
            held = session.cache.nbytes
            session.reserve(64)
            return held, parts, lambda: session.extend([int(session.logits.argmax())])

        return run

    def theirs(press=None):
        def run(ids: list[int]):
            cache, inputs = DynamicCache(), torch.tensor([ids], device="cuda")
            more = places(len(ids), model.device) if press else {}
            with torch.no_grad(), press(model) if press else nullcontext():
                out = model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1, **more)
            state = {"next": out.logits[:, -1:].argmax(-1), "position": len(ids)}

            @torch.no_grad()
            def step():
                position = torch.tensor([[state["position"]]], device="cuda")
                out = model(state["next"], past_key_values=cache, position_ids=position)
                state["next"] = out.logits[:, -1:].argmax(-1)
                state["position"] += 1

            held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            return held, {}, step

        return run

    for name in methods:
        method, _, ratio = name.partition(":")
        settings = {"keep_ratio": float(ratio)} if ratio else {}
        if method == "h2o":
            settings["decode_slack"] = None  # decoding without observing is what is compared
        yield f"ours, {method} {ratio or 1}", ours(method, settings)
    if not peers:
        return
    yield "transformers, full", theirs()
    try:
        import kvpress
    except ImportError:
        return
    for label, wrapper in WRAPPERS.items():
        press = kvpress.SnapKVPress(0.8)
        yield (
            f"kvpress, {label} 0.2",
            theirs(getattr(kvpress, wrapper)(press) if wrapper else press),
        )


def attempt(model: LlamaForCausalLM, run, ids: list[int], new_tokens: int) -> dict:
    """One prompt: seconds, peak and cache bytes, milliseconds a token; or what went wrong."""
    clear_masks(model)  # which would count as the next system's memory
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    try:
        start = time.perf_counter()
        held, parts, step = run(ids)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(new_tokens):
            step()
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    except Exception as error:  # a peer that breaks must not end the run
        return {"error": f"{type(error).__name__}: {str(error)[:100]}"}
    decode_ms = (time.perf_counter() - start) / new_tokens * 1e3
    return {
        "prefill_s": round(seconds, 4),
        **{name: round(ms, 3) for name, ms in parts.items()},
        "peak_bytes": peak,
        "cache_bytes": held,
        "decode_ms": round(decode_ms, 3),
    }


def print_table(length: int, measured: dict[str, list[dict]]) -> None:
    """A Markdown table of medians; of prefill also the fastest and slowest."""
    print(
        f"\n| {length} tokens | prefill s | statistics + eviction ms | peak GiB | cache GiB |",
        end="",
    )
    print(" decode ms/token |\n|---|---|---|---|---|---|")
    for label, runs in measured.items():
        good = [run for run in runs if "error" not in run]
        if not good:
            print(f"| {label} | {runs[0]['error'] if runs else 'not run'} | | | | |")
            continue
        middle = {key: median(run[key] for run in good) for key in good[0]}
        prefill_s = [run["prefill_s"] for run in good]
        parts = f"{middle.get('statistics_ms', 0):.1f} + {middle.get('evict_ms', 0):.1f}"
        print(
            f"| {label} | {middle['prefill_s']:.2f} ({min(prefill_s):.2f}–{max(prefill_s):.2f}) "
            f"| {parts} | {middle['peak_bytes'] / GIB:.1f} | {middle['cache_bytes'] / GIB:.3f} "
            f"| {middle['decode_ms']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
