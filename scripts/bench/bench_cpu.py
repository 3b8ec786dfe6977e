"""Prefill, decoding and memory on a CPU beside transformers, on a built-in model.

    .venv/bin/python scripts/bench/bench_cpu.py --out docs/data/cpu.json

Every cell is a process of its own, so that its peak memory is its own. Rows of PyTorch and
transformers are there where ``.venv-torch`` is (``bash scripts/setup.sh --with-torch``). Seconds of
CPU, over all threads, stand beside those on the clock: where others have the cores too, they are
the ones to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from kvevict import environment, files  # noqa: E402
from kvevict.command import Parser, command, user_path  # noqa: E402

MODEL = "qwen2.5-coder-0.5b-instruct"
WARM_UP = 300  # tokens
NEW_TOKENS = 16
HEAD = """\
| prompt | system | prefill s | CPU s | ms/token | CPU ms | tokens/s | peak MiB | cache MiB |
|---:|---|---:|---:|---:|---:|---:|---:|---:|"""


class Seconds(NamedTuple):
    """A moment, or the time between two."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, earlier: Seconds) -> Seconds:
        return Seconds(self.wall - earlier.wall, self.cpu - earlier.cpu)


class Step(NamedTuple):
    """A system that has its model: what reads a prompt, and what then decodes.

    Attributes:
        prefill: from token ids to whatever ``decode`` goes on from, and the cache's bytes.
        decode: takes that on by a number of tokens for each prompt.
        products: what multiplies by the weights, as a run's record says.
        prompts: that are read one by one, and whose answers are decoded side by side.
    """

    prefill: Callable[[list[int]], tuple[Any, int]]
    decode: Callable[[Any, int], object]
    products: dict[str, str]
    prompts: int = 1


def ours(
    framework: str, method: str, dtype: str = "float32", prompts: int = 1
) -> Callable[[str], Step]:
    """This project on a framework, under a method's defaults."""

    def start(model: str) -> Step:
        from kvevict import build, load, prefill
        from kvevict.engine import decode_together

        decoder = load(model, dtype, framework=framework).decoder()
        policy = build(method, **({} if method == "full" else {"min_eviction_seqlen": 0}))

        def read(ids: list[int]) -> tuple[Any, int]:
            different = [[*ids[n:], *ids[:n]] for n in range(prompts)]
            sessions = [prefill(decoder, ids, [policy])[0] for ids in different]
            return sessions, sum(session.cache.nbytes for session in sessions)

        def decode(sessions: Any, tokens: int) -> None:
            decode_together(sessions, tokens + 1)  # the first is the prefill's own

        return Step(read, decode, decoder.products, prompts)

    return start


def transformers(dtype: str) -> Callable[[str], Step]:
    """transformers as it comes, logits of the last position alone."""

    def start(model: str) -> Step:
        import torch
        from transformers import AutoModelForCausalLM

        from kvevict.models import builtin_dir

        torch.set_grad_enabled(False)
        folder = builtin_dir(model)
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

        def read(ids: list[int]) -> tuple[Any, int]:
            out = lm(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            layers = out.past_key_values.layers
            return out, sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))

        def decode(out: Any, tokens: int) -> None:
            for _ in range(tokens):
                token = out.logits[:, -1:].argmax(-1)
                out = lm(token, past_key_values=out.past_key_values)

        return Step(read, decode, {})

    return start


SYSTEMS = {
    "Paddle, full cache": ours("paddle", "full"),
    "Paddle, NACL 20%": ours("paddle", "nacl"),
    "Paddle, NACL 20%, 4 prompts": ours("paddle", "nacl", prompts=4),
    "PyTorch, full cache": ours("pytorch", "full"),
    "PyTorch, NACL 20%": ours("pytorch", "nacl"),
    "PyTorch, NACL 20%, 4 prompts": ours("pytorch", "nacl", prompts=4),
    "PyTorch, full cache, bfloat16": ours("pytorch", "full", "bfloat16"),
    "transformers": transformers("float32"),
    "transformers, bfloat16": transformers("bfloat16"),
}


def measure(system: str, model: str, length: int, repeats: int) -> dict[str, Any]:
    """One cell: the repeat of the least CPU time; the peak is the process's.

    Times are of a prompt and of a token, whatever the number of prompts.
    """
    if not system.startswith("transformers"):
        environment.configure()
    step = SYSTEMS[system](model)
    ids = [(i * 7919) % 40000 + 100 for i in range(max(length, WARM_UP))]
    step.decode(step.prefill(ids[:WARM_UP])[0], 2)
    rows = []
    for _ in range(repeats):
        began = Seconds.now()
        state, cache = step.prefill(ids[:length])
        read = Seconds.now()
        step.decode(state, NEW_TOKENS)
        prefill, decode = read - began, Seconds.now() - read
        del state  # before the next takes as much
        tokens = NEW_TOKENS * step.prompts
        row = {
            "prefill_seconds": prefill.wall / step.prompts,
            "prefill_cpu_seconds": prefill.cpu / step.prompts,
            "ms_per_token": 1e3 * decode.wall / tokens,
            "cpu_ms_per_token": 1e3 * decode.cpu / tokens,
            "cache_bytes": cache,
        }
        rows.append({key: round(value, 3) for key, value in row.items()})
    best = min(rows, key=lambda row: row["prefill_cpu_seconds"])
    peak = environment.peak_process_bytes()
    return {**best, "peak_bytes": peak, "products": step.products}


@command()
def main() -> None:
    """Measure all cells and print the table."""
    args = _arguments()
    if args.cell:
        print(json.dumps(measure(args.cell, args.model, args.lengths[0], args.repeats)))
        return
    rows = []
    print(HEAD, flush=True)
    for length in args.lengths:
        for system in SYSTEMS:
            own = Path(sys.executable) if "Paddle" in system else ROOT / ".venv-torch/bin/python"
            if not own.exists():
                continue
            row = {"length": length, "system": system, **_cell(own, system, length, args)}
            rows.append(row)
            print(_line(row), flush=True)
    if args.out:
        of_all = {"model": args.model, "threads": environment.default_threads(), "cpu": _cpu()}
        files.write(args.out, json.dumps({**of_all, "rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="a built-in model")
    parser.add_argument("--lengths", type=_lengths, default=[1000, 4000, 8000], help="tokens")
    parser.add_argument("--repeats", type=int, default=2, help="the one of least CPU time counts")
    parser.add_argument("--out", type=user_path, help="also write the numbers as JSON")
    parser.add_argument("--cell", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _lengths(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _cell(python: Path, system: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    of_cell = ["--cell", system, "--lengths", str(length), "--repeats", str(args.repeats)]
    done = subprocess.run(
        [python, __file__, "--model", args.model, *of_cell], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{system} at {length} tokens failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['length']:,} | {row['system']} | {row['prefill_seconds']:.1f} "
        f"| {row['prefill_cpu_seconds']:.1f} | {row['ms_per_token']:.0f} "
        f"| {row['cpu_ms_per_token']:.0f} | {1e3 / row['ms_per_token']:.1f} "
        f"| {row['peak_bytes'] / 2**20:,.0f} | {row['cache_bytes'] / 2**20:.1f} |"
    )


def _cpu() -> str:
    """The processor's name and how many cores it has for this process."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{len(os.sched_getaffinity(0))} × {names[0] if names else 'unknown'}"


if __name__ == "__main__":
    sys.exit(main())
