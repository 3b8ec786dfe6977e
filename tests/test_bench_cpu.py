"""The measurements on a CPU, as a process, on few tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/bench/bench_cpu.py"


@pytest.mark.parametrize("framework", ["Paddle", "PyTorch"])
@pytest.mark.parametrize(("system", "caches"), [("NACL 20%", 1), ("NACL 20%, 4 prompts", 4)])
def test_a_cell_measures_time_and_memory(framework, system, caches):
    """Of caches that hold what the method keeps of 200 tokens."""
    pytest.importorskip({"Paddle": "paddle", "PyTorch": "torch"}[framework])
    flags = ["--model", "smollm2-135m-instruct", "--lengths", "200", "--repeats", "1"]
    command = [sys.executable, SCRIPT, *flags, "--cell", f"{framework}, {system}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    bytes_per_token = 30 * 3 * 2 * 64 * 4  # layers, kv heads, keys and values, head_dim, float32
    assert row.pop("cache_bytes") == caches * 40 * bytes_per_token
    assert set(row.pop("products")) == {"token", "batch", "prompt"}
    assert row["peak_bytes"] > 135e6 * 4  # the weights alone
    assert all(value > 0 for value in row.values())
