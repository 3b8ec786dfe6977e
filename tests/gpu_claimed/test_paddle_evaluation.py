"""The whole evaluation takes a GPU's way, and comes out as in float32 on a CPU."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kvevict.methods import METHODS

ROOT = Path(__file__).parents[2]
PLACES = (str(ROOT / "src"), str(ROOT / "tests" / "evaluation"))
MODES = ("prompt", "context", "decoding")
# Relative errors of logits, some times what one rounding of a small model comes to.
PRECISION = {"float16": 0.02, "bfloat16": 0.1}
SAME = 0.9  # of the entries are kept; those at the edge of the budget are nearly tied


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs evaluate.py in a process of its own; its rows by mode, and what was stood in for."""
    folder = tmp_path_factory.mktemp("claimed")

    def call(dtype: str, methods: list[str], interpret: str = "") -> tuple[dict, Counter]:
        out = folder / f"{dtype}{interpret}.pkl"
        command = [sys.executable, ROOT / "tests/gpu_claimed/evaluate.py", dtype]
        env = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": ":".join(PLACES)}
        done = subprocess.run(
            [*command, ",".join(methods), out], env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return pickle.loads(out.read_bytes())

    return call


@pytest.fixture(scope="module")
def on_cpu(run):
    """Rows of the same evaluation in float32, by mode and method."""
    found, stood_in = run("float32", [*METHODS])
    assert not stood_in
    return {mode: {row["method"]: row for row in rows} for mode, rows in found.items()}


@pytest.mark.parametrize("dtype", PRECISION)
def test_every_method_on_the_framework_s_own_operations(run, on_cpu, dtype):
    found, called = run(dtype, [*METHODS])
    fused = ("fused_rms_norm_quant", "fused_rotary_position_embedding", "swiglu")
    assert all(called[name] for name in ("flash_attn", "linear", *fused)), called
    assert {mode: len(rows) for mode, rows in found.items()} == {
        "prompt": len(METHODS),
        "context": len(METHODS),
        "decoding": 2,
    }
    check(found, on_cpu, dtype)


def test_the_kernels_in_triton_s_interpreter(run, on_cpu):
    pytest.importorskip("triton", reason="the kernels are written in Triton")
    found, called = run("float16", ["full", "nacl", "laprox", "snapkv"], interpret="1")
    kernels = ("column_statistic", "decode_attention", "projected_norms", "uniform", "top_k")
    kernels += (
        "positions",
        "take",
        "reuse",
        "put",
        "neighbours",
        "turn",
        "turn_and_append",
        "gated",
    )
    kernels += ("rms_norm", "add_rms_norm")
    assert all(called[name] for name in ("flash_attn", *kernels)), called
    check(found, on_cpu, "float16")


def check(found: dict, on_cpu: dict, dtype: str) -> None:
    """As many entries, nearly the same ones, and logits that only rounding tells apart."""
    limit, compared = PRECISION[dtype], []
    for mode in MODES:
        for row in found[mode]:
            expected = on_cpu[mode][row["method"]]
            where = (mode, row["method"])
            assert row["ids"] == expected["ids"]
            logits = [row["prefill"], *row["steps"], *row["alone"]]
            assert all(np.isfinite(x).all() for x in logits), where
            assert distance(row["prefill"], expected["prefill"]) < limit, where
            kept, of_cpu = (entries(r["kept"]) for r in (row, expected))
            assert len(kept) == len(of_cpu), where
            assert len(kept & of_cpu) >= SAME * len(of_cpu), where
            if kept == of_cpu:  # otherwise another entry, however small its part, may be missing
                compared.append(where)
                for steps in ("steps", "alone"):
                    for got, want in zip(row[steps], expected[steps]):
                        assert distance(got, want) < limit, (where, steps)
    always = {"full", "streamingllm", "random"} & {row["method"] for row in found["prompt"]}
    assert {(mode, method) for mode in MODES[:2] for method in always} <= {*compared}


def entries(kept: list[list[set[int]]]) -> set[tuple[int, int, int]]:
    """Layer, head and position of all entries."""
    layers = enumerate(kept)
    return {(i, h, at) for i, heads in layers for h, own in enumerate(heads) for at in own}


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
