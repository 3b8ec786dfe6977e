from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not find_spec("paddle"), reason="Paddle is not installed")
@pytest.mark.skipif(not find_spec("triton"), reason="the kernels are written in Triton")
def test_every_kernel_takes_paddle_tensors():
    script = ROOT / "tests" / "kernels" / "paddle_launch.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.endswith("ok\n"), run.stderr
