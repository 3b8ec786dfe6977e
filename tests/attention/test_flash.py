"""Which tensors go to the GPU's kernels, and that the others still work there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="Paddle has no tensors that say they are on a GPU")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from kvevict import ops  # noqa: E402
from kvevict.attention import ColumnStatistic, attend, attend_behind, flash  # noqa: E402
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
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (12, 0)])
def test_what_the_kernels_take(monkeypatch, capability, dtype, head_dim, taken) -> None:
    monkeypatch.setattr(ops, "compute_capability", lambda framework: capability)
    with FakeTensorMode():
        for device in ("cuda", "cpu"):
            q = torch.empty(1, 2, 5, head_dim, dtype=getattr(torch, dtype), device=device)
            expected = taken and device == "cuda" and capability >= (8, 0)
            assert ops.flash_applies(q) == expected


def cpu_flash(q, k, v, causal):
    """PyTorch's flash attention for the CPU, in place of the GPU's: also with the log-sum-exp."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("keys", [1, 50, 333])
def test_two_parts_of_attention_are_joined_as_one(monkeypatch, keys, scale) -> None:
    monkeypatch.setattr(flash, "_torch", cpu_flash)
    q, k, v, own_k, own_v = (
        scale * torch.randn(1, heads, tokens, 64)
        for heads, tokens in ((6, 90), (2, keys), (2, keys), (2, 90), (2, 90))
    )
    got = flash.attend_behind(q, k, v, own_k, own_v)
    every, values = (torch.cat(pair, dim=2).double() for pair in ((k, own_k), (v, own_v)))
    every, values = (x.repeat_interleave(3, dim=1) for x in (every, values))
    scores = q.double() @ every.mT / 8
    future = torch.ones(90, keys + 90, dtype=torch.bool).triu(keys + 1)
    expected = scores.masked_fill(future, -torch.inf).softmax(-1) @ values
    # A weight of float32 scores is off by as much as the largest of them may be rounded.
    rounding = torch.finfo(torch.float32).eps * scores.abs().max().item()
    limits = {"rtol": 1e-3, "atol": 1e-3 * scale + 2 * rounding * values.abs().max().item()}
    torch.testing.assert_close(got.double(), expected, **limits)
    plain = attend_behind(q, k, v, own_k, own_v)
    torch.testing.assert_close(plain.double(), expected, **limits)


@pytest.mark.gpu
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

    cache = LayerCache.compact(k[0, :, :-1], v[0, :, :-1])
    cache.append(k[0, :, -1:], v[0, :, -1:])
    mixed, _ = attend_cached(q[0, :, -1:], cache)
    torch.testing.assert_close(mixed.cpu().double(), expected.out[0, :, -1:], rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_more_elements_than_int32_counts() -> None:
    """Queries of 2³¹ numbers and more: rows, columns and the last entries are where they belong."""
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs a GPU with 40 GiB")
    tokens, heads, group = (1 << 19) + 300, 8, 4
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, tokens, h, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for h in (heads * group, heads, heads)
    )
    q, k, v = (3 * q).contiguous(), k.contiguous(), v.contiguous()  # few keys weigh most
    assert q.numel() > 1 << 31
    statistics = (
        ColumnStatistic("sum", tokens // 100),
        ColumnStatistic("sum_of_squares", 32, per_kv_head=False),
    )
    out, lse, columns = attend(q, k, v, statistics)
    for head in (0, 13, 31):
        keys, values = k[0, head // group].double(), v[0, head // group].double()
        for row in (5, 70_000, tokens - 1):
            scores = keys[: row + 1] @ q[0, head, row].double() * 128**-0.5
            mixed = scores.softmax(0) @ values[: row + 1]
            torch.testing.assert_close(
                lse[0, head, row].double(), scores.logsumexp(0), rtol=1e-4, atol=1e-3
            )
            torch.testing.assert_close(out[0, head, row].double(), mixed, rtol=0.02, atol=5e-3)
    for statistic in statistics:
        power = 1 if statistic.reduce == "sum" else 2
        rows = torch.arange(statistic.first_row(tokens), tokens, device="cuda")
        some = torch.tensor([0, 77_777, tokens - 400, tokens - 1], device="cuda")
        for head in (0, heads - 1):
            members = slice(head * group, (head + 1) * group)
            scores = q[0, members, rows].double() @ k[0, head, some].double().T * 128**-0.5
            weights = (scores - lse[0, members, rows].double().unsqueeze(-1)).exp() ** power
            weights = weights.masked_fill(some > rows.unsqueeze(-1), 0).sum(1)
            if statistic.per_kv_head:
                got, weights = columns[statistic][0, head, some], weights.sum(0)
            else:
                got = columns[statistic][0, members][:, some]
            torch.testing.assert_close(got.double(), weights, rtol=1e-2, atol=1e-9)
