"""Whether there are kernels, by what the machine has."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from kvevict import ops


@pytest.mark.parametrize("interpret", ["", "1"])
@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("compiler", ["sh", "/no/such/cc"])
def test_kernels_need_what_triton_builds_with(
    monkeypatch, capfd, tmp_path: Path, compiler: str, headers: bool, interpret: str
) -> None:
    monkeypatch.setattr(ops, "find_spec", lambda name: True)  # Triton itself is not imported
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PATH", "/bin:/usr/bin" if compiler == "sh" else str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    ops.has_triton.cache_clear()
    try:
        found = [ops.has_triton() for _ in range(3)]
    finally:
        ops.has_triton.cache_clear()
    expected = bool(interpret) or (headers and compiler == "sh")
    assert found == [expected] * 3
    told = capfd.readouterr().err
    assert told.count("\n") == told.count("C compiler") == (not expected)
