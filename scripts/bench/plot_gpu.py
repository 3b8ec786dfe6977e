"""Draw figures/gpu.png from docs/data/end_to_end_h100.json: memory of a prefill, by system."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
LENGTH = 131072
# Bars from above: label, and what the data call it.
ROWS = {
    "transformers, full": "transformers, full",
    "kvpress, Ada-KV 20%": "kvpress, adakv 0.2",
    "kvpress, SnapKV 20%": "kvpress, snapkv 0.2",
    "ours, full": "ours, full 1",
    "ours, Ada-KV 20%": "ours, adakv 0.2",
    "ours, NACL 20%": "ours, nacl 0.2",
    "ours, LaProx 5%": "ours, laprox 0.05",
    "ours, Fade 5%": "ours, fade 0.05",
}


def main() -> None:
    file = ROOT / "docs/data/end_to_end_h100.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    runs = {row["label"]: row["runs"] for row in rows if row["length"] == LENGTH}
    figure, memory = plt.subplots(figsize=(6.5, 2.8))
    for place, (label, name) in enumerate(ROWS.items()):
        color = "C0" if label.startswith("ours") else "0.6"
        peak, cache = (
            median(run[key] for run in runs[name]) / GIB for key in ("peak_bytes", "cache_bytes")
        )
        memory.barh(place, peak, color=color, alpha=0.35)
        memory.barh(place, cache, color=color)
        memory.text(peak, place, f" {peak:.1f}, cache {cache:.1f}", va="center", fontsize=8)
    memory.set_title(
        "prefill of 131,072 tokens: peak memory, and the cache within, GiB", fontsize=9
    )
    memory.set_yticks(range(len(ROWS)), list(ROWS), fontsize=8)
    memory.invert_yaxis()
    memory.spines[["top", "right", "bottom"]].set_visible(False)
    memory.set_xticks([])
    memory.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(ROOT / "figures/gpu.png", dpi=150)


if __name__ == "__main__":
    main()
