"""Expected attention held to its formula in float64, with RoPE as complex numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict import InputError
from kvevict.engine import moments
from kvevict.methods.expected_attention import ExpectedAttention
from tests.methods.brute import Prompt, choose, kept, run, tensor


class Turned(Prompt):
    """Queries and keys are those after RoPE of some angles; scaled as under YaRN."""

    angles, scale = 0.7 ** np.arange(4), 1.2

    def rotary(self, layer, start, tokens):
        angles = np.outer(np.arange(start, start + tokens), np.tile(self.angles, 2))
        sign = np.repeat([-1, 1], 4)
        tables = np.cos(angles) * self.scale, np.sin(angles) * sign * self.scale
        return tuple(tensor(table.astype(np.float32)) for table in tables)

    def turns(self, positions: np.ndarray) -> np.ndarray:
        """What multiplies dimensions (i, i + 4), as complex numbers, ``[positions, 4]``."""
        return self.scale * np.exp(1j * np.outer(positions, self.angles))


def unturned(prompt: Turned, layer: int) -> np.ndarray:
    q = prompt.q[layer].astype(np.float64)
    before = (q[..., :4] + 1j * q[..., 4:]) / prompt.turns(np.arange(prompt.n))
    return np.concatenate([before.real, before.imag], -1)


def average_turn(prompt: Turned, positions: int) -> np.ndarray:
    """R as a matrix ``[8, 8]``."""
    turn = prompt.turns(np.arange(prompt.n, prompt.n + positions)).mean(0)
    cos, sin = np.diag(turn.real), np.diag(turn.imag)
    return np.block([[cos, -sin], [sin, cos]])


def scores(prompt: Prompt, layer: int, settings: dict, queries: np.ndarray, turn: np.ndarray):
    """``[kv_heads, n]``, of entries behind the sinks."""
    sinks, d = settings.get("n_sink", 4), 8
    result = []
    for h in range(prompt.kv_heads):
        keys = prompt.k[layer, h, sinks:].astype(np.float64)
        weights = []
        for own in queries[h * prompt.group : (h + 1) * prompt.group, sinks:]:
            logits = keys @ (turn @ own.mean(0)) / d**0.5
            if settings.get("use_covariance", True):
                covariance = turn @ np.cov(own.T, bias=True) @ turn.T
                logits += np.einsum("ni,ij,nj->n", keys, covariance, keys) / (2 * d)
            weights.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
        mean = np.mean(weights, axis=0)
        if settings.get("use_vnorm", True):
            norms = np.linalg.norm(prompt.v[layer, h, sinks:].astype(np.float64), axis=-1)
            mean = (mean + settings.get("epsilon", 0.0)) * norms
        result.append(np.concatenate([np.zeros(sinks), mean]))
    return np.array(result)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_future_positions": 7},
        {"n_sink": 0, "epsilon": 0.02},
        {"n_sink": 9, "use_vnorm": False},
        {"use_covariance": False, "n_future_positions": 1},
    ],
)
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 3), (1, 1)])
def test_keeps_what_its_formula_says(monkeypatch, settings, turned, kv_heads, group) -> None:
    monkeypatch.setattr(moments, "CHUNK", 37)
    prompt = (Turned if turned else Prompt)(len(settings), 120, kv_heads=kv_heads, group=group)
    policy = ExpectedAttention(0.3, min_eviction_seqlen=0, **settings)
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        queries, turn = prompt.q[layer].astype(np.float64), np.eye(8)
        if turned:
            queries = unturned(prompt, layer)
            turn = average_turn(prompt, settings.get("n_future_positions", 512))
        own = scores(prompt, layer, settings, queries, turn)
        assert heads == [choose(score, 36, settings.get("n_sink", 4), 0) for score in own]


def test_a_large_mean_hides_no_covariance(monkeypatch) -> None:
    """Biases make queries whose mean is a thousand times their spread."""
    monkeypatch.setattr(moments, "CHUNK", 16)
    prompt = Prompt(3, 400, layers=1)
    prompt.q += np.float32(1000) * np.sign(np.arange(8, dtype=np.float32) - 3.5)
    q = tensor(prompt.q)
    found = moments.query_moments(prompt, 0, q, moments.QueryMoments(0), 2)
    own = prompt.q[0].astype(np.float64)
    expected = np.array([np.cov(rows.T, bias=True) for rows in own]).reshape(2, 2, 8, 8)
    np.testing.assert_allclose(found.mean.numpy().reshape(4, 8), own.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.covariance.numpy(), expected, rtol=0, atol=2e-2)


def test_positions_end_where_the_models_do() -> None:
    """Of 512 positions to come, those count that there are; at the end, the last one."""
    for positions in (130, 121, 120):
        prompt = Turned(1, 120, layers=1)
        prompt.max_positions = positions
        (heads,) = kept(run(ExpectedAttention(0.3, min_eviction_seqlen=0), prompt), prompt)
        first = min(120, positions - 1)
        turn = average_turn(Turned(1, first, layers=1), positions - first)
        own = scores(prompt, 0, {}, unturned(prompt, 0), turn)
        assert heads == [choose(score, 36, 4, 0) for score in own]


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6])
def test_prompts_as_short_as_the_sinks(n: int) -> None:
    prompt = Prompt(n, n)
    heads = kept(run(ExpectedAttention(0.5, min_eviction_seqlen=0), prompt), prompt)
    assert heads == [[list(range(max(1, n // 2)))] * 2] * 2


@pytest.mark.parametrize("setting", [{"n_future_positions": 0}, {"n_sink": -1}, {"epsilon": -0.1}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        ExpectedAttention(**setting)
