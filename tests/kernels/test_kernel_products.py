"""Products of few rows, with the norm before and the gate and the addition after, in float64."""

from __future__ import annotations

import pytest

from tests.kernels.dense import DEVICE, DTYPES, TOLERANCE, error, kernels, torch

# rows, outputs, inputs: whole tiles and parts of them
SHAPES = [
    (1, 37, 300),
    (1, 8, 4096),
    (1, 1, 72),
    (2, 70, 520),
    (3, 33, 64),
    (5, 1, 24),
    (8, 130, 96),
]
if DEVICE == "cuda":
    SHAPES += [(1, 6144, 4096), (1, 4096, 14336), (7, 14336, 4096), (8, 4096, 14336)]
EPS = 1e-3


def drawn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_and_what_surrounds_it(shape, dtype):
    rows, n, width = shape
    x, weight = drawn(rows, 1, width, dtype=dtype), drawn(n, width, dtype=dtype, scale=0.1)
    x[0] *= 0.03  # where eps counts
    gain, bias, added = (drawn(*own, dtype=dtype) for own in ((width,), (n,), (rows, 1, n)))
    before = x.clone(), added.clone()
    w, norm = weight.double().mT, kernels.Norm(gain, EPS)
    for options, expected in (
        ({}, x.double() @ w),
        ({"bias": bias}, x.double() @ w + bias.double()),
        ({"added": added}, x.double() @ w + added.double()),
        ({"norm": norm}, normed(x, gain) @ w),
        (
            {"bias": bias, "added": added, "norm": norm},
            normed(x, gain) @ w + bias.double() + added.double(),
        ),
    ):
        got = kernels.linear(x, weight, **options)
        assert got.shape == expected.shape and got.dtype == dtype
        roundings = 2 if "norm" in options else 1  # of several rows that is a kernel of its own
        assert error(got, expected) < roundings * TOLERANCE[dtype]
        assert torch.equal(got, kernels.linear(x, weight, **options))
    assert torch.equal(x, before[0]) and torch.equal(added, before[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gate_within_its_product(shape, dtype):
    rows, n, width = shape
    x, weight = drawn(1, rows, width, dtype=dtype), drawn(2 * n, width, dtype=dtype, scale=0.2)
    gain = drawn(width, dtype=dtype)
    for norm, own in ((None, x.double()), (kernels.Norm(gain, EPS), normed(x, gain))):
        gate, up = (own @ weight.double().mT).chunk(2, dim=-1)
        got = kernels.gated_linear(x, weight, norm)
        assert error(got, gate * torch.sigmoid(gate) * up) < 2 * TOLERANCE[dtype]


def test_rows_that_lie_apart_are_taken_as_they_are():
    x, weight = drawn(2, 5, 64, dtype=DTYPES[0]), drawn(9, 64, dtype=DTYPES[0])
    last = x[:, -1:]
    assert error(kernels.linear(last, weight), last.double() @ weight.double().mT) < 1e-3
