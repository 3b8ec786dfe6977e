from __future__ import annotations

import math

import pytest

from tests.kernels.dense import DEVICE, DTYPES, TOLERANCE, error, heads, kernels, torch

# query heads, new tokens, head_dim, entries of each kv head, tail capacity, tail length
CASES = [
    (8, 1, 64, [700, 1300], 40, 7),
    (6, 1, 128, [0, 513, 1], 600, 599),
    (4, 3, 128, [5, 0, 512, 1025], 10, 3),
    (4, 5, 256, [300], 33, 20),
    (4, 1, 64, [0, 0], 1, 1),
    (300, 1, 64, [head * 37 % 90 for head in range(299)] + [2500], 3, 2),  # stacked sequences
]
if DEVICE == "cuda":
    CASES += [
        (32, 1, 128, [1, 9, 40000, 3001, 77, 25000, 26214, 5], 700, 641),
        (3200, 1, 128, [head * 977 % 5003 for head in range(800)], 70, 64),
    ]


def dense_head(q, keys, values):
    """The newest tokens ``[new, head_dim]`` over the entries that the last of them sees."""
    new, seen = len(q), len(keys)
    scores = q.double() @ keys.double().mT / math.sqrt(q.shape[-1])
    last = torch.arange(seen - new, seen, device=q.device)[:, None]
    scores = scores.masked_fill(torch.arange(seen, device=q.device) > last, -math.inf)
    return scores.softmax(-1) @ values.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case)[:40])
def test_ragged_heads_match_dense_attention(case, dtype):
    query_heads, new, head_dim, lengths, capacity, tail_len = case
    kv_heads, group = len(lengths), query_heads // len(lengths)
    starts = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    q = heads(1, query_heads, new, head_dim, dtype)
    keys, values = (heads(1, 1, sum(lengths), head_dim, dtype)[0, 0] for _ in range(2))
    tail_k, tail_v = (heads(1, kv_heads, capacity, head_dim, dtype)[0] for _ in range(2))
    tail_k[:, tail_len:] = tail_v[:, tail_len:] = math.nan  # not yet written

    length = torch.tensor([tail_len], dtype=torch.int32, device=DEVICE)
    got = kernels.decode_attention(q, keys, values, starts, tail_k, tail_v, length)

    ends = torch.tensor(lengths).cumsum(0).tolist()
    expected = torch.empty(got.shape, dtype=torch.float64, device=DEVICE)
    for head in range(query_heads):
        kv = head // group
        own = slice(ends[kv] - lengths[kv], ends[kv])
        expected[0, head] = dense_head(
            q[0, head],
            torch.cat([keys[own], tail_k[kv, :tail_len]]),
            torch.cat([values[own], tail_v[kv, :tail_len]]),
        )
    assert error(got, expected) < TOLERANCE[dtype]


@pytest.mark.gpu
def test_a_graph_follows_a_growing_tail():
    starts = torch.tensor([0, 900, 1000], dtype=torch.int32, device=DEVICE)
    q = heads(1, 4, 1, 128, torch.bfloat16)
    keys, values = (heads(1, 1, 1000, 128, torch.bfloat16)[0, 0] for _ in range(2))
    tail_k, tail_v = (heads(1, 2, 50, 128, torch.bfloat16)[0] for _ in range(2))
    length = torch.tensor([1], dtype=torch.int32, device=DEVICE)
    arguments = (q, keys, values, starts, tail_k, tail_v, length)
    kernels.decode_attention(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.decode_attention(*arguments)
    for tail_len in (1, 17, 50):
        length.fill_(tail_len)
        graph.replay()
        assert torch.equal(out, kernels.decode_attention(*arguments))
