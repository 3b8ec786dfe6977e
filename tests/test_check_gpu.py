"""scripts/check_gpu.sh where there is no GPU: it says so, and a trial of it goes through."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.interpreters import interpreter

ROOT = Path(__file__).parents[1]


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "scripts" / "check_gpu.sh"), *arguments]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("framework", ["paddle", "pytorch"])
def test_a_trial_runs_every_part(framework):
    python = interpreter(framework)
    run = check("--python", python, KVEVICT_CHECK_DEVICE="cpu")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout and "failed" not in run.stdout
    assert run.stdout.count("ran in Triton's interpreter") == 4
    last = run.stdout.splitlines()[-1]
    assert last.startswith(f"{python}: the check itself works; of a GPU it says nothing")


def test_a_machine_without_a_gpu_is_not_fit():
    python = interpreter("paddle")
    run = check("--python", python)
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1].startswith(f"{python}: NOT fit for use: what is installed ")


def test_what_the_check_itself_needs_is_named(tmp_path):
    hidden = "import sys\nsys.modules['pytest'] = sys.modules['yaml'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    python = interpreter("pytorch")
    run = check("--python", python, KVEVICT_CHECK_DEVICE="cpu", PYTHONPATH=str(tmp_path))
    assert run.returncode == 1
    assert "pip install pytest PyYAML\n" in run.stdout and "Traceback" not in run.stdout
    assert f"{python}: NOT fit for use: what is installed does not fit" in run.stdout


@pytest.mark.parametrize("arguments", [["--python"], ["--python", "no-such-python"], ["gpu"]])
def test_what_it_does_not_know_is_refused(arguments):
    run = check(*arguments)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
