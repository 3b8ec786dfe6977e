#!/usr/bin/env python3
"""The decode kernel over an int8 and an fp8 cache beside bfloat16's, on one GPU.

    PYTHONPATH=src python scripts/bench/bench_quantised.py --out quantised.json

One layer of Llama-3.1-8B's shape (32 query heads, 8 kv heads, head_dim 128), all of the prompt and
a fifth of it, in heads of equal and of unequal lengths. Each row is first held to float64
attention over the numbers that codes and scales stand for, then timed. A floor is the bytes that
are held, scales included, over the bandwidth that a negation reaches on this card.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import triton
from gpu_timing import behind, ceilings, milliseconds

from kvevict import kernels
from kvevict.cache import LayerCache
from kvevict.ops import reads

QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
GROUP = QUERY_HEADS // KV_HEADS
RAGGED = (0.5, 1.5, 1.0, 0.19, 1.81, 1.0, 0.76, 1.24)  # lengths of the heads over their mean
KV_DTYPES = (None, "int8", "fp8")
LIMIT = 1e-2  # relative error of an output in bfloat16


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def filled(lengths: list[int], kv_dtype: str | None) -> LayerCache:
    """Random entries, the same for each type; the keys' channels differ in size."""
    torch.manual_seed(0)
    keys, values = drawn(sum(lengths), HEAD_DIM), drawn(sum(lengths), HEAD_DIM)
    keys *= torch.linspace(0.1, 2, HEAD_DIM, device="cuda").to(keys.dtype)
    layer = LayerCache(keys, values, [*lengths])
    if kv_dtype:
        layer.quantise(kv_dtype)
    layer.append(drawn(KV_HEADS, 7, HEAD_DIM), drawn(KV_HEADS, 7, HEAD_DIM))
    return layer


def error(q: torch.Tensor, layer: LayerCache, got: torch.Tensor) -> float:
    """Relative to float64 attention, head by head: all of a long cache would not fit as float64."""
    exact = LayerCache(layer.keys.double(), layer.values.double(), layer.lengths,
                       quantised=layer.quantised)  # fmt: skip
    off = size = 0.0
    head = 0
    for _, run_keys, run_values in exact.runs():
        for keys, values in zip(run_keys, run_values):
            own = slice(head * GROUP, head * GROUP + GROUP)
            k = torch.cat([keys, layer.tail_keys[head, : layer.tail].double()])
            v = torch.cat([values, layer.tail_values[head, : layer.tail].double()])
            weights = (q[own, 0].double() @ k.T / math.sqrt(HEAD_DIM)).softmax(-1)
            expected = weights @ v
            off += float(((got[own, 0].double() - expected) ** 2).sum())
            size += float((expected**2).sum())
            head += 1
    return math.sqrt(off / size)


def measured(lengths: list[int], kv_dtype: str | None, bytes_per_s: float) -> dict:
    """Error, time and floor of a decoded token."""
    layer, q = filled(lengths, kv_dtype), drawn(QUERY_HEADS, 1, HEAD_DIM)
    tail = torch.tensor([layer.tail], dtype=torch.int32, device="cuda")
    chunks, capacity = kernels.count_chunks(lengths), layer.tail_keys.shape[1]
    call = (q, layer.device_table, tail, chunks, capacity, None, kv_dtype)
    found = error(q, layer, kernels.decode_attention(*call))
    ms = milliseconds(kernels.decode_attention, *call)
    row = {"error": found, "ms": ms, "bytes": layer.nbytes}
    row["floor_ms"] = 1e3 * row["bytes"] / bytes_per_s
    if kv_dtype:
        whole = filled(lengths, None)
        keys, values = whole.keys, whole.values
        row["quantise_ms"] = behind(lambda: LayerCache(keys, values, [*lengths]).quantise(kv_dtype))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tokens", type=int, default=65536)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("the kernels are timed on a GPU, and PyTorch finds none")
    kinds = [kind for kind in KV_DTYPES if kind is None or reads(kind, "torch")]
    ceiling, rows = ceilings(), []
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "tokens": args.tokens,
        "ceilings": ceiling,
        "rows": rows,
    }
    print(f"{record['device']}, {ceiling['bytes_per_s'] / 1e12:.2f} TB/s")
    print("| entries | cache | error | ms | floor ms | of bfloat16's time | quantising ms |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    for share in (1.0, 0.2):
        mean = int(share * args.tokens)
        ragged = [int(part * mean) for part in RAGGED]
        for name, lengths in (("equal", [mean] * KV_HEADS), ("ragged", ragged)):
            before = None
            for kv_dtype in kinds:
                row = measured(lengths, kv_dtype, ceiling["bytes_per_s"])
                before = before or row["ms"]
                row.update(entries=mean, heads=name, kv_dtype=kv_dtype or "bfloat16")
                row["of_bfloat16"] = row["ms"] / before
                rows.append(row)
                args.out.write_text(json.dumps(record, indent=1) + "\n")
                print(
                    f"| {mean:,} a head, {name} | {row['kv_dtype']} | {row['error']:.1e} "
                    f"| {row['ms']:.4f} | {row['floor_ms']:.4f} | {row['of_bfloat16']:.2f} "
                    f"| {row.get('quantise_ms', 0):.2f} |",
                    flush=True,
                )
                torch.cuda.empty_cache()
    if wrong := [row for row in rows if not row["error"] < LIMIT]:
        raise SystemExit(f"{len(wrong)} of {len(rows)} results are off by more than {LIMIT:.0e}")


if __name__ == "__main__":
    main()
