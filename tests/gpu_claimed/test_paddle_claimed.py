"""Tests on tensors that claim a GPU, each file in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "gpu_claimed"


@pytest.mark.parametrize("name", ["claimed_attention", "claimed_decoding", "claimed_fused"])
def test_on_a_claimed_gpu(name):
    if name == "claimed_decoding":
        pytest.importorskip("triton", reason="the kernels are written in Triton")
    places = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests" / "gpu"), str(FOLDER)]
    env = {**os.environ, "PYTHONPATH": ":".join(places), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{name}.py"]
    run = subprocess.run(command, cwd=FOLDER, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout + run.stderr
    assert "skipped" not in run.stdout, run.stdout
