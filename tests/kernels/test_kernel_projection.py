from __future__ import annotations

import pytest

from kvevict.errors import InputError
from tests.kernels.dense import DEVICE, DTYPES, heads, kernels, torch

SHAPES = [(3, 2, 300, 64), (1, 1, 1, 128), (2, 4, 129, 128), (1, 3, 77, 256)]
if DEVICE == "cuda":
    SHAPES += [(8, 4, 4099, 128)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_of_projected_values(shape, dtype):
    """Every norm, also where W hardly lets a value through."""
    kv_heads, group, tokens, head_dim = shape
    values = heads(1, kv_heads, tokens, head_dim, dtype)[0]
    w = torch.randn(kv_heads, group, head_dim, 300, device=DEVICE) * 0.02
    w[..., : head_dim // 2, :] *= 1e-2
    values[:, :, head_dim // 2 :] *= 1e-2
    w = w.to(dtype)

    expected = (values.double().unsqueeze(1) @ w.double()).norm(dim=-1)
    weights = torch.rand(kv_heads, group, tokens, device=DEVICE)
    for own in (w, w.mT.contiguous().mT):  # as a layer of Paddle's has it, and of PyTorch's
        got = kernels.projected_norms(values, own)
        assert got.shape == expected.shape
        assert ((got - expected) / expected).abs().max() < 1e-3
        got, total = kernels.projected_norms(values, own, weights), (expected * weights).sum(1)
        assert ((got - total) / total).abs().max() < 1e-3


def test_what_the_kernel_cannot_take_is_said():
    values = heads(1, 1, 8, 96, torch.float16)[0]
    with pytest.raises(InputError, match="head_dim"):
        kernels.projected_norms(values, values.new_zeros(1, 1, 96, 8))
