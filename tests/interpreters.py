"""The Python of each framework: Paddle and PyTorch have an environment of their own."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kvevict.backends import FRAMEWORKS

ROOT = Path(__file__).parents[1]


def interpreter(framework: str) -> str:
    """This Python, or the one that an environment variable or scripts/setup.sh has for it."""
    if all(map(find_spec, FRAMEWORKS[framework])):
        return sys.executable
    variable, venv = {
        "paddle": ("KVEVICT_PADDLE_PYTHON", ".venv"),
        "pytorch": ("KVEVICT_TORCH_PYTHON", ".venv-torch"),
    }[framework]
    found = Path(os.environ.get(variable, ROOT / venv / "bin" / "python"))
    if not found.exists():
        pytest.skip(f"no environment with {framework}: neither {variable} nor {venv}")
    return str(found)
