"""The decode kernel over quantised prefixes, against float64 attention over the same numbers."""

from __future__ import annotations

import math

import pytest

from tests.kernels.dense import DEVICE, DTYPES, TOLERANCE, error, heads, kernels, torch

KINDS = ("int8", "fp8")

from kvevict.cache import KVCache, LayerCache  # noqa: E402
from kvevict.engine.table import Table  # noqa: E402
from tests.kernels.test_kernel_decode import CASES, dense_head  # noqa: E402

if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
    KINDS = ("int8",)


def sequence(lengths, capacity, tail_len, head_dim, dtype, kv_dtype) -> LayerCache:
    """A random layer, quantised, whose tail is of its own length; its keys' channels differ."""
    keys, values = (heads(1, 1, sum(lengths), head_dim, dtype)[0, 0] for _ in range(2))
    keys = keys * torch.linspace(0.1, 2, head_dim, device=DEVICE).to(dtype)
    layer = LayerCache(keys.contiguous(), values.contiguous(), [*lengths])
    layer.quantise(kv_dtype)
    layer.append(*(heads(1, len(lengths), tail_len, head_dim, dtype)[0] for _ in range(2)))
    layer.reserve(capacity)
    for tail in (layer.tail_keys, layer.tail_values):
        tail[:, tail_len:] = math.nan  # not yet written
    return layer


def expected(layer: LayerCache, q: torch.Tensor) -> torch.Tensor:
    """Dense attention in float64 over exactly what codes and scales stand for."""
    layer = LayerCache(layer.keys.double(), layer.values, layer.lengths, layer.tail_keys,
                       layer.tail_values, layer.tail, quantised=layer.quantised)  # fmt: skip
    runs = [(k, v) for _, ks, vs in layer.runs() for k, v in zip(ks, vs)]
    group = len(q) // len(layer.lengths)
    outs = []
    for head, own in enumerate(q):
        tails = (x[head // group, : layer.tail] for x in (layer.tail_keys, layer.tail_values))
        k, v = (torch.cat([x, tail.double()]) for x, tail in zip(runs[head // group], tails))
        outs.append(dense_head(own, k, v))
    return torch.stack(outs)


def attend(q: torch.Tensor, layers: list[LayerCache], kv_dtype: str, more: int = 0):
    """What the kernel makes of these sequences, with some chunks and capacity to spare."""
    table = torch.cat([layer.device_table for layer in layers], dim=1)
    tails = torch.tensor([x.tail for x in layers], dtype=torch.int32, device=DEVICE)
    entries, count = kernels.count_chunks(length for x in layers for length in x.lengths)
    chunks = kernels.Chunks(entries, count + more)
    capacity = max(x.tail_keys.shape[1] for x in layers) + 700 * more
    return kernels.decode_attention(q, table, tails, chunks, capacity, kv_dtype=kv_dtype)


@pytest.mark.parametrize("kv_dtype", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case)[:40])
def test_quantised_heads_match_dense_attention(case, dtype, kv_dtype) -> None:
    query_heads, new, head_dim, sequences = case
    layers = [sequence(*one, head_dim, dtype, kv_dtype) for one in sequences]
    q = heads(1, query_heads * len(layers), new, head_dim, dtype)[0]
    wanted = torch.cat([expected(x, own) for x, own in zip(layers, q.chunk(len(layers)))])
    got = attend(q, layers, kv_dtype)
    assert error(got, wanted) < TOLERANCE[dtype]
    assert torch.equal(got, attend(q, layers, kv_dtype, more=3))


@pytest.mark.parametrize("kv_dtype", KINDS)
def test_a_table_of_places(kv_dtype) -> None:
    """A token is written to each tail, and a free place between two reads nothing."""
    dtype = DTYPES[0]
    layers = [sequence(lengths, 9, 5, 64, dtype, kv_dtype) for lengths in ([70, 3], [130, 64])]
    caches = [KVCache([layer], 99) for layer in layers]
    table = Table(caches[0], 3)
    table.put([caches[0], None, caches[1]])
    q, k, v = (heads(3, count, 1, 64, dtype) for count in (4, 2, 2))
    tail_lens = torch.tensor([6, 1, 6], dtype=torch.int32, device=DEVICE)
    got = table.attend(0, q, k, v, tail_lens).reshape(3, 4, 1, 64)
    for place, layer in zip((0, 2), layers):
        layer.tail += 1
        assert torch.equal(layer.tail_keys[:, 5:6], k[place])
        assert error(got[place], expected(layer, q[place])) < TOLERANCE[dtype]
