"""Which tensors go to the GPU's kernels, and that the others still work there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="Paddle has no tensors that say they are on a GPU")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from kvevict.attention import ColumnStatistic, attend, flash  # noqa: E402
from kvevict.attention.cached import attend_cached  # noqa: E402
from kvevict.cache import LayerCache  # noqa: E402


@pytest.mark.parametrize(
    ("dtype", "head_dim", "taken"),
    [
        ("float16", 64, True),
        ("bfloat16", 128, True),
        ("bfloat16", 256, True),
        ("bfloat16", 96, False),
        ("float16", 32, False),
        ("float32", 128, False),
    ],
)
def test_what_the_kernels_take(dtype: str, head_dim: int, taken: bool) -> None:
    with FakeTensorMode():
        for device in ("cuda", "cpu"):
            q = torch.empty(1, 2, 5, head_dim, dtype=getattr(torch, dtype), device=device)
            assert flash.applies(q) == (taken and device == "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_any_head_dim_runs_on_a_gpu(head_dim: int) -> None:
    q, k, v = (
        torch.randn(1, heads, 150, head_dim, device="cuda", dtype=torch.bfloat16)
        for heads in (4, 2, 2)
    )
    statistic = ColumnStatistic("sum", 30)
    got = attend(q, k, v, (statistic,))
    expected = attend(*(x.cpu().double() for x in (q, k, v)), (statistic,))
    torch.testing.assert_close(got.out.cpu().double(), expected.out, rtol=0.02, atol=0.02)
    columns = (out.columns[statistic].cpu().double() for out in (got, expected))
    torch.testing.assert_close(*columns, rtol=0.02, atol=0.02)

    cache = LayerCache.compact(k[0, :, :-1], v[0, :, :-1], None)
    cache.append(k[0, :, -1:], v[0, :, -1:])
    mixed, _ = attend_cached(q[0, :, -1:], cache)
    torch.testing.assert_close(mixed.cpu().double(), expected.out[0, :, -1:], rtol=0.02, atol=0.02)
