"""What one prefill for many settings saves: a sweep against separate runs, on the built-in model.

    .venv/bin/python scripts/bench/bench_sweep.py [--length 2700]

Twelve settings (four methods, three ratios) on one prompt: from one prefill, decoded one by one
or as one batch, and from twelve. All share one loaded model, so that only prefill and decoding
are compared. kvpress does a sweep of its own where ``.venv-torch`` has it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

MODEL = "smollm2-135m-instruct"
RATIOS = (0.05, 0.2, 0.5)
METHODS = {"snapkv": "SnapKVPress", "tova": "TOVAPress", "keynorm": "KnormPress"}


def main() -> None:
    """Measure both ways and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=2700, help="prompt tokens")
    parser.add_argument("--new_tokens", type=int, default=8)
    parser.add_argument("--kvpress", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    ids = [(i * 7919) % 40000 + 100 for i in range(args.length)]
    if args.kvpress:
        print(f"{_kvpress(ids, args.new_tokens):.2f}")
        return
    seconds, answers = _ours(ids, args.new_tokens)
    print(f"{args.length} tokens, 12 settings, {args.new_tokens} new tokens each")
    print("| | s | times as long | same tokens |")
    print("|---|---:|---:|---|")
    for name, spent in seconds.items():
        same = "yes" if answers[name] == answers["twelve prefills"] else "NO"
        print(f"| {name} | {spent:.2f} | {spent / seconds['one by one']:.2f} | {same} |")
    python = ROOT / ".venv-torch/bin/python"
    if python.exists():
        command = [python, __file__, "--kvpress", "--length", str(args.length)]
        command += ["--new_tokens", str(args.new_tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            spent = float(done.stdout)
            times = spent / seconds["one by one"]
            print(f"| kvpress, twelve settings of its own | {spent:.2f} | {times:.2f} | |")
        else:
            print(f"| kvpress | not measured: {done.stderr.strip().splitlines()[-1]} | | |")


def _ours(ids: list[int], new_tokens: int) -> tuple[dict[str, float], dict[str, list[list[int]]]]:
    from kvevict import build, environment

    environment.configure()
    from kvevict import load
    from kvevict.backends.paddle.decoder import PaddleDecoder
    from kvevict.engine import decode, decode_together, prefill

    decoder = PaddleDecoder(load(MODEL).model)
    policies = [
        build(method, keep_ratio=ratio, min_eviction_seqlen=256)
        for method in ("nacl", "laprox", "snapkv", "adakv")
        for ratio in RATIOS
    ]
    prefill(decoder, ids[:256], policies[:1])  # warm up
    ways = {
        "one by one": lambda: [decode(s, new_tokens) for s in prefill(decoder, ids, policies)],
        "as one batch": lambda: decode_together(prefill(decoder, ids, policies), new_tokens),
        "twelve prefills": lambda: [
            decode(prefill(decoder, ids, [p])[0], new_tokens) for p in policies
        ],
    }
    seconds, answers = {}, {}
    for name, way in ways.items():
        start = time.perf_counter()
        answers[name] = way()
        seconds[name] = time.perf_counter() - start
    return seconds, answers


def _kvpress(ids: list[int], new_tokens: int) -> float:
    """Twelve settings as kvpress does them: a prefill each."""
    import kvpress
    import torch
    from transformers import DynamicCache, LlamaForCausalLM

    from kvevict.models import builtin_dir

    model = LlamaForCausalLM.from_pretrained(builtin_dir(MODEL), dtype=torch.float32).eval()
    presses = [getattr(kvpress, name)(1 - r) for name in METHODS.values() for r in RATIOS]
    presses += [kvpress.RandomPress(1 - r) for r in RATIOS]
    start = time.perf_counter()
    for press in presses:
        cache, inputs = DynamicCache(), torch.tensor([ids])
        with torch.no_grad():
            with press(model):
                out = model(inputs, past_key_values=cache, logits_to_keep=1)
            for step in range(new_tokens - 1):
                token = out.logits[:, -1:].argmax(-1)
                position = torch.tensor([[len(ids) + step]])
                out = model(token, past_key_values=cache, position_ids=position)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
