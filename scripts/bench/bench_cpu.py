"""Prefill, decoding and memory on a CPU, on the built-in model, against its peers.

    .venv/bin/python scripts/bench/bench_cpu.py [--lengths 500,1500,2700,8000]

Every cell is a process of its own, so that its peak memory is its own. transformers on PyTorch is
measured where ``.venv-torch`` is there (``bash scripts/setup.sh --with-torch``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

MODEL = "smollm2-135m-instruct"
PADDLENLP_UP_TO = 2700  # its dense masks and weights take a minute and gigabytes beyond
NEW_TOKENS = 8


def main() -> None:
    """Measure all cells and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="500,1500,2700,8000", help="prompt tokens")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        system, length, repeats = args.cell
        print(json.dumps(CELLS[system](int(length), int(repeats))))
        return
    torch_python = ROOT / ".venv-torch/bin/python"
    rows = []
    print("| prompt | system | prefill s | ms/token | peak MiB | cache MiB | eviction |")
    print("|---:|---|---:|---:|---:|---:|---:|", flush=True)
    for length in [int(n) for n in args.lengths.split(",")]:
        for system in CELLS:
            if system == "PaddleNLP" and length > PADDLENLP_UP_TO:
                continue
            python = torch_python if system == "transformers" else Path(sys.executable)
            if not python.exists():
                continue
            row = {"length": length, "system": system, **_cell(python, system, length, args)}
            rows.append(row)
            share = f"{row['eviction']:.1%}" if "eviction" in row else ""
            print(
                f"| {length} | {system} | {row['prefill']:.2f} | {row['decode'] * 1e3:.0f} "
                f"| {row['peak'] / 2**20:.0f} | {row.get('cache', 0) / 2**20:.1f} | {share} |",
                flush=True,
            )
    _ratios(rows)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


def _cell(python: Path, system: str, length: int, args: argparse.Namespace) -> dict:
    command = [python, __file__, "--cell", system, str(length), str(args.repeats)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{system} at {length} tokens failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _ratios(rows: list[dict]) -> None:
    print("\nPrefill and eight tokens, against ours with the full cache:")
    total = {(r["length"], r["system"]): r["prefill"] + NEW_TOKENS * r["decode"] for r in rows}
    for (length, system), seconds in total.items():
        if system in ("PaddleNLP", "transformers"):
            print(f"  {length} tokens: {system} takes {seconds / total[length, 'full']:.2f} times")


def _ours(method: str, length: int, repeats: int) -> dict:
    from kvevict import build, environment

    environment.configure()
    from kvevict import load
    from kvevict.backends.paddle.decoder import PaddleDecoder
    from kvevict.engine import decode, prefill
    from kvevict.engine.prompt_eviction import Eviction

    evicting = [0.0]
    add_layer = Eviction.add_layer

    def timed(*arguments) -> None:
        start = time.perf_counter()
        add_layer(*arguments)
        evicting[0] += time.perf_counter() - start

    Eviction.add_layer = timed
    decoder = PaddleDecoder(load(MODEL).model)
    policy = build(method, **({} if method == "full" else {"min_eviction_seqlen": 256}))
    decode(prefill(decoder, _ids(300), [policy])[0], 2)  # warm up
    best: dict = {}
    for _ in range(repeats):
        evicting[0] = 0.0
        start = time.perf_counter()
        (session,) = prefill(decoder, _ids(length), [policy])
        prefilled = time.perf_counter()
        cache = session.cache.nbytes
        decode(session, NEW_TOKENS + 1)
        row = {
            "prefill": prefilled - start,
            "decode": (time.perf_counter() - prefilled) / NEW_TOKENS,
            "cache": cache,
            "eviction": evicting[0] / (prefilled - start),
        }
        best = min(best or row, row, key=lambda r: r["prefill"])
    return {**best, "peak": environment.peak_process_bytes()}


def _paddlenlp(length: int, repeats: int) -> dict:
    from kvevict import environment

    os.environ["KMP_BLOCKTIME"] = "200"
    environment.configure()
    _glibc_defaults()
    import paddle

    from kvevict import load

    model = load(MODEL).model
    ids = paddle.to_tensor([_ids(length)])
    mask = paddle.ones_like(ids)

    def seconds(new: int) -> float:
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new,
            decode_strategy="greedy_search",
        )  # fmt: skip
        return time.perf_counter() - start

    first = min(seconds(1) for _ in range(repeats))
    return {
        "prefill": first,
        "decode": max(0.0, seconds(1 + NEW_TOKENS) - first) / NEW_TOKENS,
        "peak": environment.peak_process_bytes(),
    }


def _glibc_defaults() -> None:
    """Take back what ``configure`` did beyond threads: this cell is PaddleNLP as it comes."""
    import ctypes

    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 128 << 10)
    libc.mallopt(-1, 128 << 10)


def _transformers(length: int, repeats: int) -> dict:
    import torch
    from transformers import LlamaForCausalLM

    from kvevict import environment
    from kvevict.models import builtin_dir

    model = LlamaForCausalLM.from_pretrained(builtin_dir(MODEL), dtype=torch.float32).eval()
    best: dict = {}
    with torch.no_grad():
        model(torch.tensor([_ids(300)]), logits_to_keep=1)  # warm up
        for _ in range(repeats):
            start = time.perf_counter()
            out = model(torch.tensor([_ids(length)]), use_cache=True, logits_to_keep=1)
            prefilled = time.perf_counter()
            for _ in range(NEW_TOKENS):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values)
            row = {
                "prefill": prefilled - start,
                "decode": (time.perf_counter() - prefilled) / NEW_TOKENS,
            }
            best = min(best or row, row, key=lambda r: r["prefill"])
    return {**best, "peak": environment.peak_process_bytes()}


def _ids(length: int) -> list[int]:
    return [(i * 7919) % 40000 + 100 for i in range(length)]


CELLS = {
    "full": lambda length, repeats: _ours("full", length, repeats),
    "nacl": lambda length, repeats: _ours("nacl", length, repeats),
    "PaddleNLP": _paddlenlp,
    "transformers": _transformers,
}

if __name__ == "__main__":
    main()
