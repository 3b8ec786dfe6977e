from __future__ import annotations

import math

import pytest

from tests.kernels.dense import DEVICE, DTYPES, TOLERANCE, error, heads, kernels, torch

# query heads of a sequence, new tokens, head_dim, then for each sequence the entries of each of its
# kv heads, its tail's capacity and its tail's length
CASES = [
    (8, 1, 64, [([700, 1300], 40, 7)]),
    (6, 1, 128, [([0, 513, 1], 600, 599)]),
    (4, 3, 128, [([5, 0, 512, 1025], 10, 3)]),
    (4, 5, 256, [([300], 33, 20)]),
    (4, 1, 64, [([0, 0], 1, 1)]),
    (4, 1, 64, [([700, 3], 40, 7), ([0, 0], 1, 1), ([90, 1500], 1100, 1090)]),
    (2, 2, 64, [([9], 5, 2), ([1025], 3, 3)]),
    (4, 1, 64, [([head * 37 % 90, 7], 3 + head % 5, 1 + head % 3) for head in range(24)]),
]
if DEVICE == "cuda":
    CASES += [
        (32, 1, 128, [([1, 9, 40000, 3001, 77, 25000, 26214, 5], 700, 641)]),
        (32, 1, 128, [([i * 977 % 5003] * 8, 70 + i, 1 + i % 70) for i in range(100)]),
    ]


class Held:
    """Random entries of one sequence, and its columns of the table."""

    def __init__(self, lengths, capacity, tail_len, head_dim, dtype) -> None:
        self.lengths, self.capacity, self.tail_len = lengths, capacity, tail_len
        self.prefix = [heads(1, 1, sum(lengths), head_dim, dtype)[0, 0] for _ in range(2)]
        shape = (1, len(lengths), capacity, head_dim, dtype)
        self.tails = [heads(*shape)[0].contiguous() for _ in range(2)]
        for tail in self.tails:
            tail[:, tail_len:] = math.nan  # not yet written

    def table(self) -> torch.Tensor:
        size = self.prefix[0].element_size() * self.prefix[0].shape[-1]
        starts = torch.tensor([0, *self.lengths]).cumsum(0)[:-1]
        tail_starts = torch.arange(len(self.lengths)) * self.capacity
        rows = [x.data_ptr() + starts * size for x in self.prefix]
        rows += [x.data_ptr() + tail_starts * size for x in self.tails]
        return torch.stack([*rows, torch.tensor(self.lengths)]).to(DEVICE)

    def expected(self, q: torch.Tensor) -> torch.Tensor:
        """Dense attention in float64, of ``[query_heads, new, head_dim]``."""
        keys, values = (x.split(self.lengths) for x in self.prefix)
        group = len(q) // len(self.lengths)
        return torch.stack(
            [
                dense_head(
                    own,
                    torch.cat([keys[h // group], self.tails[0][h // group, : self.tail_len]]),
                    torch.cat([values[h // group], self.tails[1][h // group, : self.tail_len]]),
                )
                for h, own in enumerate(q)
            ]
        )


def dense_head(q, keys, values):
    """The newest tokens ``[new, head_dim]`` over the entries that the last of them sees."""
    new, seen = len(q), len(keys)
    scores = q.double() @ keys.double().mT / math.sqrt(q.shape[-1])
    last = torch.arange(seen - new, seen, device=q.device)[:, None]
    scores = scores.masked_fill(torch.arange(seen, device=q.device) > last, -math.inf)
    return scores.softmax(-1) @ values.double()


def arguments(held: list[Held], more: int = 0, entries: int | None = None) -> tuple:
    """What the kernel is told of these sequences, with some chunks and capacity to spare."""
    table = torch.cat([one.table() for one in held], dim=1)
    tails = torch.tensor([one.tail_len for one in held], dtype=torch.int32, device=DEVICE)
    lengths = (length for one in held for length in one.lengths)
    chunks = kernels.count_chunks(lengths, entries)
    chunks = chunks._replace(count=chunks.count + more)
    return table, tails, chunks, max(one.capacity for one in held) + 700 * more


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case)[:40])
def test_ragged_heads_match_dense_attention(case, dtype):
    from kvevict.engine.table import share_out  # late: Triton's interpreter is chosen by then

    query_heads, new, head_dim, sequences = case
    held = [Held(*one, head_dim, dtype) for one in sequences]
    q = heads(1, query_heads * len(held), new, head_dim, dtype)[0]
    expected = torch.cat([one.expected(x) for one, x in zip(held, q.chunk(len(held)))])
    got = kernels.decode_attention(q, *arguments(held))
    assert error(got, expected) < TOLERANCE[dtype]
    assert torch.equal(got, kernels.decode_attention(q, *arguments(held, more=3)))
    table, tails, chunks, capacity = arguments(held, more=2, entries=320)
    got = kernels.decode_attention(q, table, tails, chunks, capacity)
    assert error(got, expected) < TOLERANCE[dtype]
    (places,) = share_out(table[4:5].cpu().numpy(), [chunks])
    places = torch.from_numpy(places).to(DEVICE)
    got = kernels.decode_attention(q, table, tails, chunks, capacity, places=places)
    assert error(got, expected) < TOLERANCE[dtype]


def test_chunks_are_as_many_as_run_at_a_time():
    """Whatever the heads hold: no more entries to a program than there need be, no less work."""
    assert kernels.count_chunks([]) == (128, 0)
    assert kernels.count_chunks([0, 1, 129]) == (128, 4)  # a head without entries has a tail
    for lengths in ([13107] * 8, [60000, 30, 9000, 77, 20000, 0, 5, 1]):
        entries, count = kernels.count_chunks(lengths)
        assert entries % 64 == 0 and 200 < count <= 264 + len(lengths)
        assert (count - len(lengths)) * entries <= sum(lengths) <= count * entries
        assert kernels.count_chunks(lengths, 1024).count == sum(
            max(1, -(-n // 1024)) for n in lengths
        )
    assert kernels.count_chunks([131072] * 8) == (1024, 1024)  # more would be more to combine


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_is_written_behind_each_tail(dtype):
    held = [Held(*one, 64, dtype) for one in CASES[5][3]]
    k, v = (heads(1, 6, 1, 64, dtype)[0, :, 0] for _ in range(2))
    expected = [[tail.clone() for tail in one.tails] for one in held]
    for i, (one, tails) in enumerate(zip(held, expected)):
        for tail, new in zip(tails, (k, v)):
            tail[:, one.tail_len - 1] = new[2 * i : 2 * i + 2]
    kernels.append(k, v, *arguments(held)[:2])
    for one, tails in zip(held, expected):
        for got, tail in zip(one.tails, tails):
            torch.testing.assert_close(got, tail, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_a_graph_follows_growing_tails_and_other_heads():
    held = [Held([900, 100], 50, 1, 128, torch.bfloat16) for _ in range(3)]
    other = Held([30, 700], 50, 9, 128, torch.bfloat16)
    for one in (*held, other):
        for tail in one.tails:
            tail.nan_to_num_(1.0)
    q = heads(1, 12, 1, 128, torch.bfloat16)[0]
    table, tails, chunks, capacity = arguments(held)
    kernels.decode_attention(q, table, tails, chunks, capacity)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.decode_attention(q, table, tails, chunks, capacity)
    for lengths in ([1, 17, 50], [50, 3, 9]):
        tails.copy_(torch.tensor(lengths))
        graph.replay()
        assert torch.equal(out, kernels.decode_attention(q, table, tails, chunks, capacity))
        table[:, 2:4] = other.table()
