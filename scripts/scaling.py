"""Print the tables of docs/scaling.md: arithmetic on Llama-3.1-70B's shape, nothing measured."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from kvevict.budget import Ratio, per_head
from kvevict.command import command

LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, HIDDEN, MLP = 80, 64, 8, 128, 8192, 28672
RANKS, BF16, WORD = 8, 2, 4  # a word is a float32 score or an int32 count
DIGITS, BINS = 4, 256  # a threshold among 32-bit scores, found eight bits at a time
LENGTHS = {"128K": 128 << 10, "1M": 1 << 20}
ENTRY = 2 * HEAD_DIM * BF16  # a key and a value of one kv head
KEEP = {"20%": 0.2, "5%": 0.05}


def kept(n: int, keep: float) -> int:
    """Entries of the whole model."""
    return LAYERS * KV_HEADS * per_head(n, Ratio(keep).exact)


def sizes(n: int) -> dict[str, str]:
    full, layer = LAYERS * KV_HEADS * n * ENTRY, KV_HEADS * n * ENTRY
    rows = {"cache, full": size(full)}
    rows.update({f"cache, {name} kept": size(kept(n, r) * ENTRY) for name, r in KEEP.items()})
    rows["of one rank, full"] = size(full / RANKS)
    for name, ratio in KEEP.items():
        own = kept(n, ratio) * ENTRY / RANKS
        rows[f"of one rank, {name} kept"] = size(own)
        rows[f"of one rank, {name} kept, at the peak of the prefill"] = size(own + layer / RANKS)
    weights = 2 * HIDDEN * HEAD_DIM * (QUERY_HEADS + KV_HEADS) + 3 * HIDDEN * MLP
    linear = 2 * LAYERS * weights * n
    attention = 2 * LAYERS * QUERY_HEADS * HEAD_DIM * n * n  # causal: half of all pairs
    both = linear + attention
    work = {"linear layers": linear, "attention": attention, "of one rank": both / RANKS}
    rows.update({f"prefill, {name}": f"{flop / 1e15:.1f} PFLOP" for name, flop in work.items()})
    return rows


def exchanged(n: int) -> dict[str, tuple[int, int]]:
    """Collectives a layer, and bytes of the buffers that they reduce or gather in it."""
    search, ties = DIGITS * BINS * WORD, RANKS * WORD
    candidates = KV_HEADS * min(n, KV_HEADS * per_head(n, Ratio(0.2).exact))
    return {
        "tensor parallelism itself": (2, 2 * n * HIDDEN * BF16),
        "equal heads (all other methods)": (0, 0),
        "TOVA, sum over all heads": (1, n * WORD),
        "Ada-KV, threshold search": (DIGITS + 1, search + ties),
        "Ada-KV, every rank's candidates at 20%": (1, candidates * WORD),
        "LaProx, the layer's sum and threshold search": (DIGITS + 2, WORD + search + ties),
    }


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


@command()
def main() -> None:
    columns = [sizes(n) for n in LENGTHS.values()]
    print(table(["", *LENGTHS], [[name, *(c[name] for c in columns)] for name in columns[0]]))
    rows = []
    for name, (calls, _) in exchanged(0).items():
        layer = [exchanged(n)[name][1] for n in LENGTHS.values()]
        rows.append([name, str(calls), *map(size, [*layer, *(LAYERS * b for b in layer)])])
    head = ["", "collectives a layer", *(f"a layer, {n}" for n in LENGTHS)]
    print("\n" + table([*head, *(f"a prompt, {n}" for n in LENGTHS)], rows))


if __name__ == "__main__":
    sys.exit(main())
