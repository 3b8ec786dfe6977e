#!/usr/bin/env python3
"""The products of a decoded token, with norms, gate and additions, beside PyTorch's, on one GPU.

    PYTHONPATH=src python scripts/bench/bench_products.py --out products.json

Layers of Llama-3.1-8B's shape one after another in one CUDA graph, so that no weight is in the L2
cache when its turn comes. A layer's products by this library are four launches for one row; beside
them PyTorch's four products with this library's kernels between them, which is what more rows than
8 go through. Each is first held to float64. The floor is the weights' bytes over the bandwidth that
a negation reaches on this card.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from gpu_timing import ceilings
from torch.nn.functional import linear

from kvevict import kernels

HIDDEN, INTERMEDIATE, PROJECTED, LAYERS = 4096, 14336, 6144, 8
EPS = 1e-5
LIMIT = 2e-2  # relative error of a layer in bfloat16
Layer = dict[str, torch.Tensor]


def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def layer() -> Layer:
    shapes = {
        "qkv": (PROJECTED, HIDDEN),
        "o": (HIDDEN, HIDDEN),
        "gate_and_up": (2 * INTERMEDIATE, HIDDEN),
        "down": (HIDDEN, INTERMEDIATE),
    }
    weights = {name: drawn(*shape, scale=0.02) for name, shape in shapes.items()}
    return {**weights, "first": drawn(HIDDEN), "second": drawn(HIDDEN)}


def ours(x: torch.Tensor, mixed: torch.Tensor, own: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's projections of ``x``, and what it makes of attention's output."""
    first, second = (kernels.Norm(own[name], EPS) for name in ("first", "second"))
    qkv = kernels.linear(x, own["qkv"], norm=first)
    x = kernels.linear(mixed, own["o"], added=x)
    gated = kernels.gated_linear(x, own["gate_and_up"], second)
    return qkv, kernels.linear(gated, own["down"], added=x)


def theirs(x: torch.Tensor, mixed: torch.Tensor, own: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    qkv = linear(kernels.rms_norm(x, own["first"], EPS), own["qkv"])
    x, normed = kernels.add_rms_norm(x, linear(mixed, own["o"]), own["second"], EPS)
    gated = kernels.gated(*linear(normed, own["gate_and_up"]).chunk(2, dim=-1))
    x.view(-1, HIDDEN).addmm_(gated.view(-1, INTERMEDIATE), own["down"].t())
    return qkv, x


def exact(x: torch.Tensor, mixed: torch.Tensor, own: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    x, mixed = x.double(), mixed.double()

    def normed(y: torch.Tensor, name: str) -> torch.Tensor:
        return y * (y.square().mean(-1, keepdim=True) + EPS).rsqrt() * own[name].double()

    qkv = normed(x, "first") @ own["qkv"].double().t()
    x = x + mixed @ own["o"].double().t()
    gate, up = (normed(x, "second") @ own["gate_and_up"].double().t()).chunk(2, dim=-1)
    return qkv, x + (gate * gate.sigmoid() * up) @ own["down"].double().t()


def microseconds(run: Callable, x: torch.Tensor, mixed: torch.Tensor, layers: list[Layer]) -> float:
    """Of a layer, the median of some replays of them all."""

    def through() -> list[torch.Tensor]:
        hidden, held = x, []
        for own in layers:
            qkv, hidden = run(hidden, mixed, own)
            held += [qkv, hidden]
        return held

    through()  # compiles
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        held = through()  # noqa: F841 (the graph writes to it)
    for _ in range(20):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(1e3 * first.elapsed_time(last) / len(layers))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("the kernels are timed on a GPU, and PyTorch finds none")
    ceiling, rows = ceilings(), []
    torch.cuda.empty_cache()
    layers = [layer() for _ in range(LAYERS)]
    held = sum(own.nbytes for own in layers[0].values())
    floor = 1e6 * held / ceiling["bytes_per_s"]
    print(f"{torch.cuda.get_device_name()}, {ceiling['bytes_per_s'] / 1e12:.2f} TB/s")
    print("| rows | floor µs | PyTorch's µs | these µs | over the floor | error |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for count in args.rows:
        x, mixed = drawn(count, 1, HIDDEN), drawn(count, 1, HIDDEN)
        pairs = zip(ours(x, mixed, layers[0]), exact(x, mixed, layers[0]))
        error = max(float((got - want).norm() / want.norm()) for got, want in pairs)
        if not error < LIMIT:
            raise SystemExit(f"{count} rows: error {error:.2e}")
        row = {"rows": count, "floor_us": floor, "error": error}
        row |= {"pytorch_us": microseconds(theirs, x, mixed, layers)}
        row |= {"ours_us": microseconds(ours, x, mixed, layers)}
        rows.append(row)
        print(
            f"| {count} | {floor:.1f} | {row['pytorch_us']:.1f} | {row['ours_us']:.1f} "
            f"| {row['ours_us'] / floor:.2f} | {error:.1e} |",
            flush=True,
        )
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "ceilings": ceiling,
        "rows": rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
