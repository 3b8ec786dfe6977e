"""Moments of queries before RoPE, on models: what a model projects at position 0 is not rotated."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict import backends
from kvevict.attention import QueryMoments
from kvevict.engine import moments
from tests.tiny_families import CONFIGS, IDS, PADDLE, write_family

MODELS = [("paddle", name) for name in PADDLE] + [("pytorch", name) for name in CONFIGS]


def array(x) -> np.ndarray:
    return np.asarray(x.detach().numpy(), np.float64)


@pytest.fixture(params=MODELS, ids=": ".join)
def decoder(request, tmp_path):
    framework, name = request.param
    pytest.importorskip(framework.removeprefix("py"), reason="each has an environment of its own")
    path = write_family(tmp_path / "model", name)
    return backends.load(path, framework=framework, device="cpu").decoder()


def scale_of(decoder, layer: int) -> float:
    """What RoPE multiplies lengths by: 1 but under YaRN."""
    tables = decoder.rotary(layer, 0, 1)
    return float(array(tables[0])[0, 0]) if tables else 1.0


def test_they_are_of_the_queries_as_projected(decoder, monkeypatch) -> None:
    monkeypatch.setattr(moments, "CHUNK", 31)
    hidden = decoder.embed(IDS)
    scales = set()
    for layer in range(decoder.layers):
        q, _, _ = decoder.project(layer, hidden, 0)
        found = moments.query_moments(decoder, layer, q, QueryMoments(4), decoder.kv_heads)
        scales.add(round(scale_of(decoder, layer), 3))
        before, _, _ = decoder.project(layer, hidden.swapaxes(0, 1), 0)  # each token a sequence
        own = array(before)[4:, :, 0].swapaxes(0, 1) / scale_of(decoder, layer)
        expected = own.mean(1), np.array([np.cov(rows.T, bias=True) for rows in own])
        for one, other in zip(found, expected):
            got = array(one).reshape(other.shape)
            np.testing.assert_allclose(got, other, rtol=0, atol=1e-4 * np.abs(other).max())
    assert len(scales) == 1


def test_ahead_is_the_mean_over_positions(decoder) -> None:
    n, positions, token = 100, 9, decoder.embed([7])
    for layer in range(decoder.layers):
        x = decoder.project(layer, token, 0)[0] / scale_of(decoder, layer)
        got = array(moments.rotate_ahead(decoder, layer, n, x, positions))
        turned = [decoder.project(layer, token, n + i)[0] for i in range(positions)]
        expected = np.mean([array(one) for one in turned], 0)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
