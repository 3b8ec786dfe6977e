"""Eviction by the kernels keeps what eviction by the framework's operations on a CPU keeps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvevict import NACL, noise, ops
from kvevict.attention import ColumnStatistic
from kvevict.engine.decode_eviction import DecodeEviction
from kvevict.engine.prompt_eviction import Eviction
from kvevict.methods.adakv import SharedTopK
from kvevict.methods.base import Equal, LayerView, Policy, TopK
from kvevict.methods.criticalkv import TwoStages
from kvevict.methods.laprox import ModelWide, OutputScore
from kvevict.methods.nacl import ProxyScore
from tests.kernels.dense import DEVICE, kernels, torch

LAYERS, HEADS, GROUP, D = 4, 3, 2, 64
N = 9001 if DEVICE == "cuda" else 1201
COMMON = {"min_eviction_seqlen": 0, "keep_ratio": 0.2}
DRAW = NACL(0.2, min_eviction_seqlen=0).selector
POLICIES = {
    "two parts": Policy("nacl", ProxyScore(), Equal(), DRAW, **COMMON),
    "drawn": Policy("drawn", ProxyScore(), Equal(), NACL(0.2, 0.01, 0.0, 0.2).selector, **COMMON),
    "top-k": Policy("snapkv", ProxyScore(), Equal(), TopK(4, 32), **COMMON),
    "shared": Policy("adakv", ProxyScore(), SharedTopK(), TopK(0, 32), **COMMON),
    "two parts, shared": Policy("both", ProxyScore(), SharedTopK(), DRAW, **COMMON),
    "two stages": Policy("criticalkv", ProxyScore(), Equal(), TwoStages(0, 32), **COMMON),
    "model-wide": Policy("laprox", ProxyScore(), ModelWide(), TopK(2, 32), **COMMON),
}


@pytest.fixture
def use_kernels(monkeypatch: pytest.MonkeyPatch):
    """Have them used in the interpreter too, where no tensor is on a GPU."""

    def use() -> None:
        if DEVICE == "cpu":
            for name in ("kernels", "attention_kernels"):
                monkeypatch.setattr(ops, name, lambda x: kernels)

    return use


def layers(device: str, levels: int | None) -> list[LayerView]:
    """The same on every device; a few levels make scores tie."""
    generator = torch.Generator().manual_seed(7)
    views = []
    for layer in range(LAYERS):
        scores = torch.rand(HEADS, N, generator=generator) ** 4
        scores = (scores * levels).round() / levels if levels else scores
        k, v = torch.randn(2, HEADS, N, D, generator=generator).half().to(device)
        w_o = torch.randn(HEADS, GROUP, D, 100, generator=generator).half().to(device)
        keys = [noise.key(layer, head) for head in range(HEADS)]
        views.append(LayerView((scores.to(device),), k, v, w_o, keys))
    return views


def run(policy: Policy, views: list[LayerView]) -> Eviction:
    eviction = Eviction(policy, N, LAYERS, HEADS, record=True)
    for view in views:
        eviction.add_layer(view)
    return eviction


@pytest.mark.parametrize("levels", [None, 20], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_same_entries_are_kept(name, levels, use_kernels):
    expected = run(POLICIES[name], layers("cpu", levels))
    use_kernels()
    got = run(POLICIES[name], layers(DEVICE, levels))
    got.check()
    assert got.cache.entries == got.budget * HEADS * LAYERS
    for one, other in zip(expected.cache.layers, got.cache.layers):
        assert one.lengths == other.lengths
        for field in ("positions", "keys", "values"):
            assert torch.equal(getattr(one, field), getattr(other, field).cpu())


def decode(name: str, device: str, steps: int) -> Eviction:
    """A prompt and some tokens after it, with weights at random."""
    views = layers(device, None)
    policy = replace(POLICIES[name], decode_slack=1, decode_drop=0.1)
    eviction = run(policy, views)
    decoding = DecodeEviction.for_policy(eviction)
    model = SimpleNamespace(output_projection=lambda layer: views[layer].w_o)
    generator = torch.Generator().manual_seed(8)
    for _ in range(steps):
        for layer, held in enumerate(eviction.cache.layers):
            held.append(*torch.randn(2, HEADS, 1, D, generator=generator).half().to(device))
            shapes = [(k.shape[0], GROUP, 1, k.shape[1] + held.tail) for _, k, _ in held.runs()]
            weights = [torch.rand(shape, generator=generator).to(device) for shape in shapes]
            decoding.observe(layer, held, weights, model)
    return eviction


@pytest.mark.parametrize("name", ["two parts", "shared", "model-wide"])
def test_the_same_entries_are_kept_while_decoding(name, use_kernels):
    steps = 3
    before = run(POLICIES[name], layers("cpu", None)).cache.entries
    expected = decode(name, "cpu", steps)
    use_kernels()
    got = decode(name, DEVICE, steps)
    assert got.cache.entries < before
    for one, other in zip(expected.cache.layers, got.cache.layers):
        assert (one.lengths, one.tail) == (other.lengths, other.tail)
        for field in ("keys", "values"):
            assert torch.equal(getattr(one, field), getattr(other, field).cpu())
        for a, b in zip(one.columns, other.columns):
            torch.testing.assert_close(a, b.cpu())


def test_a_score_that_is_not_finite_is_told_after_the_last_layer(use_kernels):
    use_kernels()
    views = layers(DEVICE, None)
    views[2].columns[0][1, 700] = float("nan")
    eviction = run(POLICIES["two parts"], views)
    assert eviction.cache.entries == eviction.budget * HEADS * LAYERS
    with pytest.raises(FloatingPointError, match=r"^nacl: the scores of layer 2 are not finite$"):
        eviction.check()


def test_laprox_scores(use_kernels):
    """The kernel's norms of projected values, inside the scorer."""
    view = layers("cpu", None)[0]
    squares = view.columns[0].unsqueeze(1).expand(HEADS, GROUP, N)
    scorer = OutputScore()
    assert scorer.statistics(N) == (ColumnStatistic("sum_of_squares", 32, per_kv_head=False),)
    norms = (view.values.double().unsqueeze(1) @ view.w_o.double()).norm(dim=-1)
    expected = torch.nn.functional.avg_pool1d(
        (squares.double().sqrt() * norms).sum(1)[:, : N - 32], 7, 1, 3
    )
    expected = expected / expected.sum()
    use_kernels()
    tensors = (view.keys, view.values, view.w_o)
    own = LayerView((squares.to(DEVICE),), *(x.to(DEVICE) for x in tensors), view.noise_keys)
    got = scorer(own)[:, : N - 32].cpu()
    assert ((got - expected) / expected).abs().max() < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["two parts", "drawn", "top-k", "two stages"])
def test_the_host_never_waits(name):
    views = layers(DEVICE, None)
    run(POLICIES[name], views)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        eviction = run(POLICIES[name], views)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    eviction.check()
