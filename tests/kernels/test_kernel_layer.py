"""What a layer does beside its products, against float64 on fresh random inputs."""

from __future__ import annotations

import math

import pytest

from tests.kernels.dense import DEVICE, DTYPES, TOLERANCE, error, heads, kernels, torch
from tests.kernels.test_kernel_decode import CASES, Held, arguments

TYPES = [*DTYPES, torch.float32]
LIMITS = {**TOLERANCE, torch.float32: 2e-6}
SHAPES = [(1, 1, 64), (3, 2, 300), (1, 5, 4096)]


def drawn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_and_what_is_added_before(shape, dtype):
    x, more = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype)
    x[0, 0] *= 1e-3  # where eps counts
    before, weight = x.clone(), drawn(shape[-1], dtype=dtype)
    assert error(kernels.rms_norm(x, weight, 1e-5), normed(x, weight, 1e-5)) < LIMITS[dtype]
    sums, out = kernels.add_rms_norm(x, more, weight, 1e-5)
    assert error(sums, x.double() + more.double()) < LIMITS[dtype]
    assert error(out, normed(sums, weight, 1e-5)) < LIMITS[dtype]
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gate(shape, dtype):
    gate, up = drawn(*shape, dtype=dtype) * 5, drawn(*shape, dtype=dtype)
    gate[0, 0, :2] = torch.tensor([-80.0, 80.0])  # exponentials at float32's ends
    expected = gate.double() * torch.sigmoid(gate.double()) * up.double()
    assert error(kernels.gated(gate, up), expected) < LIMITS[dtype]
    both = torch.cat([gate, up], dim=-1).chunk(2, dim=-1)
    assert error(kernels.gated(*both), expected) < LIMITS[dtype]


def tables(batch: int, tokens: int, head_dim: int, dtype: torch.dtype):
    """Random angles: cosines and sines whose halves agree, ``[batch, tokens, head_dim]``."""
    angles = torch.rand(batch, tokens, head_dim // 2, device=DEVICE) * 2 * math.pi
    return [torch.cat([x, x], dim=-1).to(dtype) for x in (angles.cos(), angles.sin())]


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x, cos, sin = x.double(), cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 40, 5, 64), (3, 2, 4, 96), (2, 8, 1, 128)], ids=str)
def test_rope(shape, dtype):
    x = heads(*shape, dtype)
    for batch in {1, shape[0]}:
        cos, sin = tables(batch, shape[2], shape[3], dtype)
        expected = turned(x, cos, sin)
        assert error(kernels.turn(x, cos, sin), expected) < LIMITS[dtype]
        # As Paddle's tables are: the first half of the sines has the sign, and axes may differ.
        signed = torch.cat([-sin[..., : shape[3] // 2], sin[..., shape[3] // 2 :]], dim=-1)
        assert (
            error(kernels.turn(x, cos.unsqueeze(1), signed.unsqueeze(1)), expected) < LIMITS[dtype]
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CASES[i] for i in (0, 1, 5, 7)], ids=lambda case: str(case)[:40])
def test_rope_and_the_tail(case, dtype):
    """Queries turned, keys turned and written behind the tails, nothing else touched."""
    query_heads, _, head_dim, sequences = case
    held, count = [Held(*one, head_dim, dtype) for one in sequences], len(sequences)
    kv_heads = len(held[0].lengths)
    q = heads(count, query_heads, 1, head_dim, dtype)
    k, v = (heads(count, kv_heads, 1, head_dim, dtype) for _ in range(2))
    for batch in {1, count}:
        cos, sin = tables(batch, 1, head_dim, dtype)
        expected = [[tail.clone() for tail in one.tails] for one in held]
        got = kernels.turn_and_append(q, k, v, cos, sin, *arguments(held)[:2])
        assert error(got, turned(q, cos, sin).reshape(got.shape)) < LIMITS[dtype]
        keys = turned(k, cos, sin)
        for i, (one, (own_keys, own_values)) in enumerate(zip(held, expected)):
            last = one.tail_len - 1
            assert error(one.tails[0][:, last], keys[i, :, 0]) < LIMITS[dtype]
            own_keys[:, last], own_values[:, last] = one.tails[0][:, last], v[i, :, 0]
            for tail, before in zip(one.tails, (own_keys, own_values)):
                torch.testing.assert_close(tail, before, rtol=0, atol=0, equal_nan=True)
