"""The whole evaluation on tensors that claim a GPU; run by test_paddle_evaluation.py.

    python evaluate.py DTYPE METHODS OUT

Writes to OUT what every prefill and the first steps after it gave, and which operations had to be
stood in for. In float32 nothing is claimed: that is the evaluation on a CPU. With
TRITON_INTERPRET=1, Triton's interpreter runs the kernels.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import claimed
import tiny

import eval_llama3
from evaluation import predict
from kvevict import ops
from kvevict.engine import Batch, prefill

DTYPE, METHODS, OUT = sys.argv[1], sys.argv[2], Path(sys.argv[3])
ON_GPU, KERNELS = DTYPE != "float32", os.environ.get("TRITON_INTERPRET") == "1"

tiny.HEAD_DIM = 64  # that flash attention takes
MODES = {
    "prompt": (METHODS, []),
    "context": (METHODS, ["--compress=context", "--decode_together"]),
    "decoding": ("h2o,tova", ["--decode_slack=4"]),
}
QUESTION, STEPS = [70, 71, 72], ([73], [74], [75])  # tokens that each session goes on with
rows: list[dict] = []


def watched(model, ids, policies, *args, **kwargs):
    """:func:`prefill`, noting what came out and how the sessions go on, one and together."""
    sessions = prefill(model, ids, policies, *args, record=True, **kwargs)
    forks = [session.fork() for session in sessions]
    alone, together = sessions[0].fork(), Batch(forks)
    for session in (alone, *forks):
        session.extend(QUESTION)
    steps = [[together.step(step * len(forks)), alone.extend(step)] for step in STEPS]
    for row, (policy, session) in enumerate(zip(policies, sessions)):
        rows.append(
            {
                "method": policy.name,
                "ids": tuple(ids),
                "prefill": session.logits.numpy(),
                "steps": [logits[row].numpy() for logits, _ in steps],
                "alone": [logits.numpy() for _, logits in steps],
                "kept": [_kept(layer) for layer in session.cache.layers],
            }
        )
    return sessions


def _kept(layer) -> list[set[int]]:
    positions, kept = layer.positions.tolist(), []
    for length in layer.lengths:
        kept.append(set(positions[:length]))
        positions = positions[length:]
    return kept


def main() -> None:
    if ON_GPU:
        claimed.claim()
    if KERNELS:
        claimed.interpret()
    else:
        ops.has_triton = lambda: False
    predict.prefill = watched
    # Attention that is far from uniform, and not so sharp that a rounded score is another answer.
    model = tiny.write_llama(OUT.parent / f"model-{OUT.stem}", scale=0.1)
    data = OUT.parent / f"data-{OUT.stem}"
    tiny.write_data(data, "passkey", 1)
    common = [f"--model_path={model}", f"--data_dir={data}", "--min_eviction_seqlen=32"]
    common += ["--task=passkey", "--keep_ratio=0.3", f"--dtype={DTYPE}"]
    found = {}
    for mode, (methods, flags) in MODES.items():
        rows.clear()
        out = OUT.parent / f"out-{OUT.stem}-{mode}"
        status = eval_llama3.main([*common, f"--output_dir={out}", f"--method={methods}", *flags])
        assert status == 0, status
        found[mode] = list(rows)
    OUT.write_bytes(pickle.dumps((found, claimed.called)))


if __name__ == "__main__":
    main()
