"""Eviction by the kernels keeps what eviction by the framework's operations on a CPU keeps."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest

from kvevict import NACL, noise, ops
from kvevict.attention import ColumnStatistic
from kvevict.engine.decode_eviction import DecodeEviction
from kvevict.engine.prompt_eviction import Eviction
from kvevict.methods import Composition, LayerView, Policy, PromptShape
from kvevict.methods.criticalkv import TwoStages
from kvevict.methods.laprox import OutputScore
from kvevict.methods.nacl import ProxyScore
from kvevict.methods.parts import Equal, LayerShared, ModelWide, TopK
from tests.kernels.dense import DEVICE, kernels, torch

LAYERS, HEADS, GROUP, D = 4, 3, 2, 64
N = 9001 if DEVICE == "cuda" else 1201
COMMON = {"min_eviction_seqlen": 0, "keep_ratio": 0.2}
DRAW = NACL(0.2).selector
DRAW_ALL = NACL(0.2, proxy_token_keep_ratio=0.0, random_token_keep_ratio=0.2).selector
PARTS = {
    "two parts": (Equal(), DRAW),
    "drawn": (Equal(), DRAW_ALL),
    "top-k": (Equal(), TopK(4, 32)),
    "shared": (LayerShared(), TopK(0, 32)),
    "two parts, shared": (LayerShared(), DRAW),
    "two stages": (Equal(), TwoStages(0, 32)),
    "model-wide": (ModelWide(), TopK(2, 32)),
}
POLICIES = {
    name: Composition(
        name=name, scorer=ProxyScore(), allocator=allocator, selector=selector, **COMMON
    )
    for name, (allocator, selector) in PARTS.items()
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


def add(policy: Policy, views: list[LayerView]) -> Eviction:
    eviction = Eviction(policy, N, LAYERS, HEADS, record=True)
    for view in views:
        eviction.add_layer(view)
    return eviction


def run(policy: Policy, views: list[LayerView]) -> Eviction:
    eviction = add(policy, views)
    eviction.finish()
    return eviction


@pytest.mark.parametrize("levels", [None, 20], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_same_entries_are_kept(name, levels, use_kernels):
    expected = run(POLICIES[name], layers("cpu", levels))
    use_kernels()
    got = run(POLICIES[name], layers(DEVICE, levels))
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
    views[2].statistics[0][1, 700] = float("nan")
    eviction = add(POLICIES["two parts"], views)
    assert eviction.cache.entries == eviction.budget * HEADS * LAYERS
    with pytest.raises(FloatingPointError, match=r"^two parts: the scores of layer 2 are not"):
        eviction.finish()


def test_laprox_scores(use_kernels):
    """The kernel's norms of projected values, inside the scorer."""
    view = layers("cpu", None)[0]
    squares = view.statistics[0].unsqueeze(1).expand(HEADS, GROUP, N)
    scorer = OutputScore()
    (asked,) = scorer.statistics(PromptShape(N, Fraction(1, 5)))
    assert asked == ColumnStatistic("sum_of_squares", 32, per_kv_head=False)
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
@pytest.mark.parametrize("name", [name for name in POLICIES if name != "two parts, shared"])
def test_the_host_never_waits(name):
    views = layers(DEVICE, None)
    run(POLICIES[name], views)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        eviction = add(POLICIES[name], views)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    eviction.finish()
