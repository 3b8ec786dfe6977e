"""A layer by this library's kernels is that of PyTorch's own operations, in every family."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from tests.kernels.dense import DEVICE, error, kernels, torch

pytest.importorskip("transformers", reason="PyTorch has an environment of its own")

from kvevict import backends
from kvevict.backends.torch.joined import lay_out
from tests.rounding import assert_same
from tests.tiny_families import CONFIGS, write_family

MODULE = import_module("kvevict.backends.torch.decoder")  # its package calls a class by that name


@pytest.fixture(params=CONFIGS)
def decoder(request, tmp_path) -> MODULE.TorchDecoder:
    path = write_family(tmp_path / "model", request.param)
    device = "gpu" if DEVICE == "cuda" else "cpu"
    return backends.load(path, device=device, dtype="float32", framework="pytorch").decoder()


def layers(decoder: MODULE.TorchDecoder, hidden: torch.Tensor, start) -> list[torch.Tensor]:
    """What every layer makes of hidden states and of what could have been attention's output."""
    found = []
    for layer in range(decoder.layers):
        q, k, v = decoder.project(layer, hidden, start)
        found += [q, k, v]
        hidden = decoder.finish_layer(layer, hidden, q.transpose(1, 2).flatten(2))
        found.append(hidden)
    return [*found, decoder.logits(hidden)]


@pytest.mark.parametrize("start", [7, (3, 0, 90), "device"], ids=str)
def test_layers_by_kernels(decoder, start, monkeypatch) -> None:
    tokens = 4 if start == 7 else 1
    if start == "device":
        start = torch.tensor([5, 60, 1], device=DEVICE)
    hidden = torch.randn(3, tokens, 64, device=DEVICE)
    before = hidden.clone()
    monkeypatch.setattr(MODULE, "kernels", lambda x: None)
    expected = layers(decoder, hidden, start)
    monkeypatch.setattr(MODULE, "kernels", lambda x: kernels)
    got = layers(decoder, hidden, start)
    for one, other in zip(expected, got):
        assert_same(one.cpu(), other.cpu())
    assert torch.equal(hidden, before)


def test_rope_is_left_to_those_who_write_to_tails(decoder) -> None:
    """Unturned queries and keys, turned by the tables beside them, are those of ``project``."""
    hidden = torch.randn(2, 1, 64, device=DEVICE)
    for layer in range(decoder.layers):
        turned = decoder.project(layer, hidden, 40)
        q, k, v, rope = decoder.unturned(layer, hidden, 40)
        if rope:
            q, k = kernels.turn(q, *rope), kernels.turn(k, *rope)
        for one, other in zip(turned, (q, k, v)):
            assert_same(one.cpu(), other.cpu())


def test_projections_of_one_input_as_one_product(decoder, monkeypatch) -> None:
    """Weights laid side by side, as on a GPU, biases too: the same layers, and one product less."""
    hidden = torch.randn(2, 3, 64, device=DEVICE)
    monkeypatch.setattr(MODULE, "kernels", lambda x: kernels)
    weights = {name: own.clone() for name, own in decoder.model.named_parameters()}
    called, linear = [], torch.nn.functional.linear

    def counted(x, weight, bias=None):
        called.append(len(weight))
        return linear(x, weight, bias)

    with monkeypatch.context() as patch:
        for parameter in decoder.model.parameters():  # apart, wherever they were loaded
            parameter.data = parameter.data.clone()
        patch.setattr(torch.nn.functional, "linear", counted)
        expected, apart = layers(decoder, hidden, 7), list(called)
        lay_out(decoder.model, torch.float32, hidden.device)
        for name, own in decoder.model.named_parameters():
            own.data.copy_(weights[name])
        called.clear()
        got = layers(decoder, hidden, 7)
    assert len(apart) - len(called) == 3 * decoder.layers
    assert sum(apart) == sum(called)
    for one, other in zip(expected, got):
        assert_same(one.cpu(), other.cpu())


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_few_rows_go_through_a_layer_in_fewer_launches(decoder, tokens, monkeypatch) -> None:
    """Norms, gate and additions within products of 16 bits: beside the layer in float32."""
    hidden = torch.randn(2, tokens, 64, device=DEVICE).half()
    monkeypatch.setattr(MODULE, "kernels", lambda x: None)
    monkeypatch.setattr(MODULE, "row_kernels", lambda x: None)
    expected = layers(decoder, hidden.float(), 7)
    decoder.model.half()
    lay_out_with(decoder, torch.float16)
    rounded = layers(decoder, hidden, 7)
    launched = []

    def counted(name):
        return lambda *args, **options: (
            launched.append(name) or getattr(kernels, name)(*args, **options)
        )

    gpu = SimpleNamespace(Norm=kernels.Norm, **{n: counted(n) for n in ("linear", "gated_linear")})
    monkeypatch.setattr(MODULE, "row_kernels", lambda x: gpu)
    got = layers(decoder, hidden, 7)
    assert launched == ["linear", "linear", "gated_linear", "linear"] * decoder.layers + ["linear"]
    for one, other, exact in zip(got, rounded, expected):
        assert error(one, exact.double()) < 1.5 * error(other, exact.double()) + 1e-3


def lay_out_with(decoder, dtype: torch.dtype) -> None:
    """Weights side by side, as they are loaded on a GPU."""
    weights = {name: own.clone() for name, own in decoder.model.named_parameters()}
    lay_out(decoder.model, dtype, torch.device(DEVICE))
    for name, own in decoder.model.named_parameters():
        own.data.copy_(weights[name])
