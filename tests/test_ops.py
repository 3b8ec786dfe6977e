"""Whether there are kernels, by what the machine has."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("claims_gpu", [False, True])
def test_top_k_tells_scores_apart_however_small_they_are(monkeypatch, claims_gpu):
    """Attention weights of a long prompt may all be below 1e-8."""
    paddle = pytest.importorskip("paddle")
    monkeypatch.setattr(paddle.Tensor, "is_cuda", property(lambda x: claims_gpu))
    monkeypatch.setattr(ops, "has_triton", lambda: False)
    scores = np.exp(np.random.default_rng().uniform(-70, 0, (3, 500))).astype("float32")
    scores[0, ::7], counts = scores[0, 3], [60, 0, 499]  # and some are ties
    mask = ops.top_k(paddle.to_tensor(scores), counts).numpy()
    for row, marked, count in zip(scores, mask, counts):
        expected = np.argsort(-row, kind="stable")[:count]
        assert np.array_equal(np.flatnonzero(marked), np.sort(expected))
