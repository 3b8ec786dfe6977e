"""The tiny model and its data on disk, and the evaluation called in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
import tiny

import eval_llama3


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A model directory."""
    return tiny.write_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data directory with eight examples of two tasks."""
    path = tmp_path_factory.mktemp("data")
    tiny.write_data(path, "passkey", 8)
    tiny.write_data(path, "number_string", 8)
    return path


@pytest.fixture
def flags(llama: Path, data: Path, tmp_path: Path) -> list[str]:
    """Flags that name the tiny model, its data and an output directory of this test's own."""
    directories = {"model_path": llama, "data_dir": data, "output_dir": tmp_path / "out"}
    named = [f"--{name}={path}" for name, path in directories.items()]
    return [*named, "--min_eviction_seqlen=32"]


@pytest.fixture
def evaluate(flags: list[str], capsys) -> Callable[..., str]:
    """Runs eval_llama3 in this process, further flags last; what it printed to stderr."""

    def call(*more: object, status: int = 0) -> str:
        capsys.readouterr()
        found = eval_llama3.main([*flags, *map(str, more)])
        error = capsys.readouterr().err
        assert found == status, error
        return error

    return call


@pytest.fixture
def predictions(tmp_path: Path) -> Callable[[str], dict[str, bytes]]:
    """The prediction files below the output directory whose runs' names contain a text."""

    def read(part: str = "") -> dict[str, bytes]:
        out = tmp_path / "out"
        files = sorted(out.glob(f"*{part}*/preds_*.jsonl"))
        return {str(file.relative_to(out)): file.read_bytes() for file in files}

    return read
