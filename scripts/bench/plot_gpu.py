"""Draw figures/gpu.png from the raw numbers in docs/data: memory, decoding, the longest prompt."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
LENGTH, LIMIT = 131072, 80 * GIB
# Bars from above: label; in end_to_end; in decode; in longest.
ROWS = (
    ("transformers, full", "transformers, full", "transformers, full cache", None),
    ("kvpress, Ada-KV 20%", "kvpress, adakv 0.2", None, None),
    ("kvpress, SnapKV 20%", "kvpress, snapkv 0.2", None, None),
    ("ours, full", "ours, full 1", "full cache", "full"),
    ("ours, Ada-KV 20%", "ours, adakv 0.2", "20%, ragged in a layer (Ada-KV)", None),
    ("ours, NACL 20%", "ours, nacl 0.2", "20%, equal heads (NACL, SnapKV)", "nacl:0.2"),
    ("ours, LaProx 5%", "ours, laprox 0.05", "5%, ragged over the model (LaProx)", "laprox:0.05"),
)


def main() -> None:
    runs = {r["label"]: r["runs"] for r in load("end_to_end") if r["length"] == LENGTH}
    steps = {r["label"]: r for r in load("decode") if r["sequences"] == 1}
    longest = {
        r["method"]: r["longest"] for r in load("longest") if r.get("limit_bytes", 0) <= LIMIT
        if "longest" in r
    }  # fmt: skip
    figure, (memory, decode, length) = plt.subplots(1, 3, figsize=(10, 2.7), sharey=True)
    for place, (label, end_to_end, step, method) in enumerate(ROWS):
        color = "C0" if label.startswith("ours") else "0.6"
        own = runs[end_to_end]
        peak, cache = (median(r[k] for r in own) / GIB for k in ("peak_bytes", "cache_bytes"))
        memory.barh(place, peak, color=color, alpha=0.35)
        memory.barh(place, cache, color=color)
        memory.text(peak, place, f" {peak:.0f}", va="center", fontsize=8)
        # Others launch kernel by kernel, which depends on the host: the fastest run to the slowest.
        timed = steps.get(step, {})
        loops = [r["decode_ms"] for r in own]
        if timed:
            loops.append(timed["loop_ms"])
        low, high = min(loops), max(loops)
        text = f" {low:.0f} to {high:.0f}"
        if "graph_ms" in timed:
            low = high = timed["graph_ms"]
            text = f" {low:.1f}"
        decode.barh(place, high, color=color, alpha=0.35)
        decode.barh(place, low, color=color)
        decode.text(high, place, text, va="center", fontsize=8)
        if method:
            length.barh(place, longest[method] / 1e3, color=color)
            text = f" {longest[method] // 1000:,}K"
            length.text(longest[method] / 1e3, place, text, va="center", fontsize=8)
    memory.set_title("prefill's peak, cache within, GiB", fontsize=9)
    decode.set_title("decoding, ms a token (ours: a CUDA graph)", fontsize=9)
    length.set_title("longest prompt in 80 GiB, by memory", fontsize=9)
    memory.set_yticks(range(len(ROWS)), [row[0] for row in ROWS], fontsize=8)
    memory.invert_yaxis()
    for axes in (memory, decode, length):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.margins(x=0.18)
    figure.tight_layout()
    figure.savefig(ROOT / "figures/gpu.png", dpi=150)


def load(name: str) -> list[dict]:
    return json.loads((ROOT / f"docs/data/{name}_h200.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
