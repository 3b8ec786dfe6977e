"""Llama-3.1-8B's shape on one GPU: a step, tokens and requests a second, launches; the prefill.

    python scripts/bench/bench_decode.py --out results/decode
    python scripts/bench/bench_decode.py --out /tmp/trial --tiny      # a trial, on a CPU

Weights and cache entries are random; but for the prefills no prompt is run: a step's work depends
on how many entries each head holds, not on what they are. Floors are of this card: bytes over what
a kernel that reads and writes moves, operations over a matrix product's rate, both measured first.
Rows are printed and saved as they come; a part that fails says so, and the next one begins.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import decode_rows
import peer_rows
import prefill_rows
import press_rows
import rate_rows
import request_rows
import torch
import transformers
from bench_setup import Setup, make_setup


class Part(NamedTuple):
    """One table.

    Attributes:
        title: of the table, with ``tokens`` or ``prompt`` of the setup.
        columns: keys of a row, and what stands above them.
        rows: what measures them.
    """

    title: str
    columns: dict[str, str]
    rows: Callable[[Setup], Iterator[dict]]


STEP = {
    "sequences": "sequences",
    "cache_gib": "cache GiB",
    "floor_ms": "floor ms",
    "graph_ms": "graph ms",
    "loop_ms": "loop ms",
    "recording_ms": "recording ms",
    "equal": "same logits",
}
RATE = {
    "sequences": "sequences",
    "cache_gib": "cache GiB",
    "peak_gb": "peak 10⁹ bytes",
    "step_ms": "ms a step",
    "floor_ms": "floor ms",
    "tokens_s": "tokens a second",
    "ceiling_tokens_s": "at the floor",
}
PREFILL = {
    "prefill_s": "prefill s",
    "floor_s": "floor s",
    "statistics_ms": "statistics ms",
    "evict_ms": "eviction ms",
    "share": "both, % of prefill",
    "peak_gib": "peak GiB",
    "cache_gib": "cache GiB",
}
REQUESTS = {
    "sequences": "sequences",
    "prefill_s": "prefill s",
    "step_ms": "ms a step",
    "floor_ms": "its floor",
    "prefills_s": "all prefills s",
    "steps_s": "all steps s",
    "requests_s": "requests a second, composed",
    "floor_requests_s": "at the floors",
    "beside_full": "beside full",
    "goal": "goal",
    "whole_requests_s": "run whole",
    "peak_gb": "peak 10⁹ bytes",
}
PEERS = {**RATE, "prefill_s": "prefill s", "requests_s": "requests a second, 256 new tokens"}
LAUNCHES = {
    "kernels": "kernels a step",
    "a_layer": "a layer",
    "busy_ms": "busy ms",
    "products_ms": "products ms",
    "attention_ms": "attention ms",
    "others_ms": "others ms",
    "step_ms": "step ms",
}
PARTS = {
    "steps": Part("A step at {tokens:,} tokens", STEP, decode_rows.steps),
    "prefill": Part("Prefill of {prompt:,} tokens", PREFILL, prefill_rows.prefills),
    "launches": Part("Kernels of a step at {tokens:,} tokens", LAUNCHES, decode_rows.launches),
    "rates": Part(
        "Prompts of {prompt:,} tokens decoded together in {limit:.0f}·10⁹ bytes",
        RATE,
        rate_rows.rates,
    ),
    "requests": Part("Requests of {prompt:,} tokens", REQUESTS, request_rows.requests),
    "peer_steps": Part("transformers: a step at {tokens:,} tokens", STEP, peer_rows.steps),
    "peer_rates": Part("transformers: prompts of {prompt:,} tokens", PEERS, peer_rows.rates),
    "kvpress": Part("kvpress: prompts of {prompt:,} tokens", PEERS, press_rows.rates),
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, in order")
    parser.add_argument("--tokens", type=int, default=65536, help="seen before a step")
    parser.add_argument("--prompt", type=int, default=32768, help="of prefills and rates")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="of each prefill")
    parser.add_argument("--layers", type=int, default=32, help="fewer for a trial")
    parser.add_argument("--limit_s", type=float, default=300, help="begin no row after this")
    parser.add_argument("--whole", type=int, default=8, help="requests run from end to end")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU if need be")
    parser.add_argument("--out", type=Path, required=True, help="folder for decode.json, decode.md")
    args = parser.parse_args()
    wanted = args.parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: there are {list(PARTS)}")
    began, report = time.monotonic(), Report(args.out)
    setup = make_setup(args)
    report.say(
        f"{setup.card}, PyTorch {torch.__version__}, transformers {transformers.__version__}, "
        f"{setup.layers} layers; {setup.bytes_per_s / 1e12:.2f} TB/s, "
        f"{setup.flop_per_s / 1e12:.0f} TFLOP/s; {time.monotonic() - began:.0f} s to set up"
    )
    for name in wanted:
        part = PARTS[name]
        if time.monotonic() - began > args.limit_s:
            report.say(f"\n{name}: not begun, {args.limit_s:.0f} s are over")
            continue
        start = time.monotonic()
        try:
            report.table(name, part, setup, began + args.limit_s)
        except Exception as error:  # the other parts are to be measured all the same
            report.say(f"\n{name} broke off: {type(error).__name__}: {str(error)[:300]}")
            report.keep(name, {"failed": traceback.format_exc()})
        setup.free()
        report.say(f"\n({name}: {time.monotonic() - start:.0f} s)")


class Report:
    """What was measured so far, printed and on disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._json, self._text = folder / "decode.json", folder / "decode.md"
        self._text.write_text("", encoding="utf-8")
        self._rows: list[dict] = []

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self._text.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def keep(self, part: str, row: dict) -> None:
        self._rows.append({"part": part, **row})
        self._json.write_text(json.dumps(self._rows, indent=1) + "\n", encoding="utf-8")

    def table(self, name: str, part: Part, setup: Setup, until: float) -> None:
        title = part.title.format(
            tokens=setup.tokens, prompt=setup.prompt, limit=setup.limit_bytes / 1e9
        )
        self.say(f"\n| {title} | " + " | ".join(part.columns.values()) + " |")
        self.say("|---|" + "---:|" * len(part.columns))
        for row in part.rows(setup):
            self.keep(name, row)
            cells = (row["error"],) if "error" in row else map(row.get, part.columns)
            self.say(f"| {row['label']} | " + " | ".join(map(cell, cells)) + " |")
            if time.monotonic() > until:
                self.say("\nthe time is over: rows are left out, if there are more")
                return
            gc.collect()


def cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
