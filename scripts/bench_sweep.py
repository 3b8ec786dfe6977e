"""What one prefill for many settings saves: a sweep against separate runs, on the built-in model.

    .venv/bin/python scripts/bench_sweep.py [--length 2700]

Twelve settings (four methods, three ratios) on one prompt. The separate runs share one loaded
model too, so that only prefill and decoding are compared. kvpress does the same sweep where
``.venv-torch`` has it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
    together, separate, same = _ours(ids, args.new_tokens)
    print(f"{args.length} tokens, 12 settings, {args.new_tokens} new tokens each")
    print(f"| one prefill | {together:.2f} s |")
    print(f"| twelve prefills | {separate:.2f} s, {separate / together:.1f} times |")
    print(f"| same tokens | {'yes' if same else 'NO'} |")
    python = ROOT / ".venv-torch/bin/python"
    if python.exists():
        command = [python, __file__, "--kvpress", "--length", str(args.length)]
        command += ["--new_tokens", str(args.new_tokens)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            seconds = float(done.stdout)
            print(f"| kvpress, twelve settings | {seconds:.2f} s, {seconds / together:.1f} times |")
        else:
            print(f"| kvpress | not measured: {done.stderr.strip().splitlines()[-1]} |")


def _ours(ids: list[int], new_tokens: int) -> tuple[float, float, bool]:
    from kvevict import build, runtime

    runtime.configure()
    from kvevict.generate import decode, prefill
    from kvevict.integrations.paddlenlp import PaddleNLPDecoder
    from kvevict.models import load

    decoder = PaddleNLPDecoder(load(MODEL).model)
    policies = [
        build(method, keep_ratio=ratio, min_eviction_seqlen=256)
        for method in ("nacl", "laprox", "h2o", "snapkv")
        for ratio in RATIOS
    ]
    prefill(decoder, ids[:256], policies[:1])  # warm up
    start = time.perf_counter()
    together = [decode(s, new_tokens) for s in prefill(decoder, ids, policies)]
    between = time.perf_counter()
    separate = [decode(prefill(decoder, ids, [p])[0], new_tokens) for p in policies]
    end = time.perf_counter()
    return between - start, end - between, together == separate


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
