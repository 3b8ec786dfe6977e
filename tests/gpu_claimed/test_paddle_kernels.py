"""Every kernel becomes machine code for the GPUs that are in use, from Paddle's tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_is_compiled_from_paddle_tensors(tmp_path, capability):
    pytest.importorskip("triton", reason="the kernels are written in Triton")
    script = ROOT / "tests" / "gpu_claimed" / "compile_kernels.py"
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env.update(PYTHONPATH=str(ROOT / "src"), TRITON_CACHE_DIR=str(tmp_path))
    run = subprocess.run([sys.executable, script, capability], env=env, capture_output=True)
    assert run.returncode == 0 and run.stdout.startswith(b"ok "), run.stderr.decode()
    assert [*tmp_path.rglob("*.cubin")]
