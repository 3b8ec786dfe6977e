#!/usr/bin/env python3
"""Time the Triton kernels on one GPU beside their floors and their peers.

    PYTHONPATH=src python scripts/bench/bench_kernels.py --out kernels.json

One layer of Llama-3.1-8B's shape (32 query heads, 8 kv heads, head_dim 128, bfloat16) at each
prompt length. Peers run in the same process: PyTorch's scaled_dot_product_attention (SDPA),
flash-colreduce where it is installed (it finds its own log-sum-exp, and has no grouped-query form:
keys are repeated), and the official release's selection on the host. The two ceilings, memory
bandwidth and matrix rate, are measured first; a floor is bytes or operations over its ceiling.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import triton
from gpu_timing import behind, ceilings, milliseconds, on_host
from torch.nn.functional import scaled_dot_product_attention

from kvevict import NACL, LaProx, SnapKV, kernels
from kvevict.attention import flash
from kvevict.cache import LayerCache
from kvevict.engine.prompt_eviction import Eviction
from kvevict.methods.base import LayerView

QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
GROUP = QUERY_HEADS // KV_HEADS
RAGGED = (0.5, 1.5, 1.0, 0.19, 1.81, 1.0, 0.76, 1.24)  # lengths of the heads over their mean


def model_heads(heads: int, tokens: int) -> torch.Tensor:
    """``[1, heads, tokens, head_dim]``, strided as a model's projections are."""
    shape = (1, tokens, heads, HEAD_DIM)
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2)


def seen(tokens: int, rows: int) -> int:
    """Query-key pairs that the last ``rows`` rows see."""
    return rows * (tokens - rows) + rows * (rows + 1) // 2


def host_selection(scores: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: dict) -> None:
    """The official release's eviction: head by head, NumPy on the host, one concatenation."""
    tokens = scores.shape[-1]
    middle = np.arange(parts["sinks"], tokens - parts["recent"])
    kept_k, kept_v = [], []
    for head in range(KV_HEADS):
        candidates = scores[0, head, parts["sinks"] : tokens - parts["recent"]]
        best = candidates.topk(parts["top_k"]).indices.cpu().numpy()
        rest = np.delete(middle, best)
        chance = candidates.softmax(-1).cpu().numpy()
        chance = np.delete(chance, best).astype(np.float64)
        drawn = np.random.choice(rest, parts["draw"], replace=False, p=chance / chance.sum())
        ends = np.r_[: parts["sinks"], tokens - parts["recent"] : tokens]
        index = torch.from_numpy(np.sort(np.concatenate([ends, middle[best], drawn]))).cuda()
        kept_k.append(k[:, head, index])
        kept_v.append(v[:, head, index])
    torch.stack(kept_k, 1), torch.stack(kept_v, 1)


def columns(q, k, lse, colreduce) -> list[dict]:
    """Column statistics of the last 1% of the rows, the last 32 and all of them."""
    tokens = k.shape[2]
    cases = [
        ("column sums, last 1% of rows", tokens // 100, "sum", True),
        ("sums of squares, last 32 rows", 32, "sum_of_squares", False),
        ("column sums, last 32 rows", 32, "sum", True),
        ("column sums, all rows", tokens, "sum", True),
        ("counts below the mean, last 400 rows", 400, "count_below_mean", True),
    ]
    rows_out = []
    for name, rows, reduce, per_kv_head in cases:
        last_q, last_lse = q[:, :, -rows:], lse[:, :, -rows:].contiguous()
        out_heads = KV_HEADS if per_kv_head else QUERY_HEADS
        row = {
            "kernel": name,
            "ms": milliseconds(kernels.column_statistic, last_q, k, last_lse, reduce, per_kv_head),
            "flop": 2 * QUERY_HEADS * HEAD_DIM * seen(tokens, rows),
            "bytes": 2 * HEAD_DIM * (KV_HEADS * tokens + QUERY_HEADS * rows)
            + 4 * (out_heads * tokens + QUERY_HEADS * rows),
        }
        if colreduce and reduce == "sum":
            repeated = k.repeat_interleave(GROUP, 1)
            row["peers"] = {
                "flash-colreduce": milliseconds(
                    colreduce, last_q, repeated, reduction="sum", is_causal=True
                )
            }
        rows_out.append(row)
    return rows_out


def selection(k, v) -> list[dict]:
    """What policies do to one layer once attention has reported: choose, and compact k and v."""
    tokens = k.shape[2]
    scores = torch.rand(KV_HEADS, tokens, device="cuda") ** 8
    squares = torch.rand(KV_HEADS, GROUP, tokens, device="cuda") ** 8
    w_o = torch.randn(KV_HEADS, GROUP, HEAD_DIM, 4096, device="cuda", dtype=torch.bfloat16)
    view = LayerView((scores,), k[0].contiguous(), v[0].contiguous(), w_o, [*range(KV_HEADS)])
    parts = NACL().selector
    sinks, recent = parts.protected(tokens, tokens // 5)
    shares = {
        "sinks": sinks,
        "recent": recent,
        "top_k": int(parts.proxy * tokens),
        "draw": int(parts.random * tokens),
    }
    row = {"flop": 0, "bytes": (8 * HEAD_DIM + 12) * KV_HEADS * (tokens // 5)}
    row["bytes"] += 4 * KV_HEADS * tokens

    def evict(policy, own=view):
        return lambda: Eviction(policy, tokens, 1, KV_HEADS).add_layer(own)

    return [
        {
            "kernel": "NACL selection and compaction",
            "ms": behind(evict(NACL())),
            **row,
            "peers": {"release, on the host": on_host(host_selection, scores[None], k, v, shares)},
        },
        {"kernel": "SnapKV scores, selection and compaction", "ms": behind(evict(SnapKV())), **row},
        {
            "kernel": "LaProx scores",
            "ms": behind(lambda: LaProx().scorer(replace(view, columns=(squares,)))),
            "flop": 2 * QUERY_HEADS * tokens * HEAD_DIM**2,
            "bytes": 2 * HEAD_DIM * KV_HEADS * tokens + 4 * (QUERY_HEADS + KV_HEADS) * tokens,
        },
    ]


def decoding(k, v) -> list[dict]:
    """One decoded token over 20% of the entries, in heads of unequal and of equal lengths."""
    mean = k.shape[2] // 5
    q = model_heads(QUERY_HEADS, 1)
    tail_len = torch.tensor([1], dtype=torch.int32, device="cuda")
    first_k, first_v = k[:, :, :mean].contiguous(), v[:, :, :mean].contiguous()
    rows = []
    for name, shares in (("ragged", RAGGED), ("equal", [1.0] * KV_HEADS)):
        lengths = [int(share * mean) for share in shares]
        lengths[-1] += KV_HEADS * mean - sum(lengths)
        keys, values = (x.reshape(-1, HEAD_DIM) for x in (first_k, first_v))
        held = LayerCache(keys, values, lengths)
        held.append(*(x[0, :, :1] for x in (k, v)))
        chunks, capacity = kernels.count_chunks(lengths), held.tail_keys.shape[1]
        rows.append(
            {
                "kernel": f"decode, {name} heads, 20% kept",
                "ms": milliseconds(
                    kernels.decode_attention, q[0], held.device_table, tail_len, chunks, capacity
                ),
                "flop": 4 * GROUP * HEAD_DIM * KV_HEADS * mean,
                "bytes": 4 * HEAD_DIM * KV_HEADS * mean,
                "peers": {
                    "SDPA, equal heads": milliseconds(
                        scaled_dot_product_attention, q, first_k, first_v, enable_gqa=True
                    ),
                    "SDPA, full cache": milliseconds(
                        scaled_dot_product_attention, q, k, v, enable_gqa=True
                    ),
                },
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32768, 131072])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("the kernels are timed on a GPU, and PyTorch finds none")
    try:
        from flash_colreduce import flash_colreduce as colreduce
    except ImportError:
        colreduce = None

    ceiling = ceilings()
    results = []
    for tokens in args.tokens:
        q, k, v = (model_heads(heads, tokens) for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS))
        lse = flash.attend(q, k, v).lse
        rows = columns(q, k, lse, colreduce)
        for row in [*rows, *selection(k, v), *decoding(k, v)]:
            row["tokens"] = tokens
            row["floor_bytes_ms"] = 1e3 * row["bytes"] / ceiling["bytes_per_s"]
            row["floor_flop_ms"] = 1e3 * row["flop"] / ceiling["flop_per_s"]
            row["ratio"] = row["ms"] / max(row["floor_bytes_ms"], row["floor_flop_ms"])
            results.append(row)
            print(format_row(row), flush=True)
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "shape": {"query_heads": QUERY_HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM},
        "ceilings": ceiling,
        "kernels": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def format_row(row: dict) -> str:
    peers = ", ".join(f"{name} {ms:.3f}" for name, ms in row.get("peers", {}).items())
    return (
        f"{row['tokens']:7d}  {row['kernel']:40s} {row['ms']:9.3f} ms   floors: bytes "
        f"{row['floor_bytes_ms']:.3f}, operations {row['floor_flop_ms']:.3f}   "
        f"{row['ratio']:5.2f}x   {peers}"
    )


if __name__ == "__main__":
    main()
