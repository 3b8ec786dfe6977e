from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict.errors import InputError
from tests.kernels.dense import DEVICE, heads, kernels, torch


def gumbel(tokens: int, key: int) -> np.ndarray:
    """The noise of one head, from the definition, in float64."""
    x = np.arange(tokens, dtype=np.int64) ^ key
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x45D9F3B % 2**32
    x = x ^ x >> 16
    return -np.log(-np.log(((x >> 9) + 0.5) / 2**23))


def expected(scores: np.ndarray, sinks: int, recent: int, top_k: int, draw: int, key: int):
    """One head's selection, by sorting."""
    tokens = len(scores)
    protected = np.concatenate([np.arange(sinks), np.arange(tokens - recent, tokens)])
    candidates = np.arange(sinks, tokens - recent)
    best = candidates[np.argsort(-scores[candidates], kind="stable")[:top_k]]
    rest = np.setdiff1d(candidates, best)
    noisy = scores[rest] + gumbel(tokens, key)[rest]
    drawn = rest[np.argsort(-noisy, kind="stable")[:draw]]
    return np.sort(np.concatenate([protected, best, drawn]))


def check(scores: torch.Tensor, sinks: int, recent: int, top_k: int, draw: int) -> None:
    keys = torch.randint(0, 2**32, (scores.shape[0] * scores.shape[1],))
    got = kernels.select(scores, sinks, recent, top_k, draw, keys.to(DEVICE))
    got = got.cpu().flatten(0, 1).numpy()
    for row, head, key in zip(got, scores.cpu().flatten(0, 1).numpy(), keys.tolist()):
        np.testing.assert_array_equal(row, expected(head, sinks, recent, top_k, draw, key))


CASES = [(1, 2, 300, 5, 7, 50, 30), (2, 1, 9001, 16, 20, 1000, 500), (1, 1, 33, 0, 0, 0, 5)]
if DEVICE == "cuda":
    CASES += [(1, 8, 131072, 256, 1054, 15728, 9175), (2, 8, 32771, 4, 64, 3001, 0)]


@pytest.mark.parametrize("levels", [None, 5], ids=["distinct", "ties"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_selection_is_what_sorting_gives(case, levels):
    batch, kv_heads, tokens, sinks, recent, top_k, draw = case
    scores = torch.randn(batch, kv_heads, tokens, device=DEVICE)
    check((scores * levels).round() / levels if levels else scores, sinks, recent, top_k, draw)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_split_of_any_length(data):
    tokens = data.draw(st.integers(1, 200))
    cuts = sorted(data.draw(st.integers(0, tokens)) for _ in range(4))
    sinks, recent, top_k, draw = np.diff([0, *cuts]).tolist()
    values = data.draw(st.lists(st.integers(-3, 3), min_size=tokens, max_size=tokens))
    # Multiplying by -1 makes negative zeros, which tie with zeros.
    check(-torch.tensor(values, device=DEVICE).float().view(1, 1, -1), sinks, recent, top_k, draw)


def test_more_than_there_is_cannot_be_kept():
    scores = torch.zeros(1, 1, 10, device=DEVICE)
    with pytest.raises(InputError, match="10 positions"):
        kernels.select(scores, 3, 3, 3, 2, torch.zeros(1, dtype=torch.int64, device=DEVICE))


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_gather_copies_the_chosen_entries(head_dim):
    x = heads(2, 3, 301, head_dim, torch.float16)
    indices = torch.rand(2, 3, 301, device=DEVICE).argsort(-1)[..., :77].sort(-1).values.int()
    expected = x.gather(2, indices.long()[..., None].expand(-1, -1, -1, head_dim))
    assert torch.equal(kernels.gather(x, indices), expected)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_ragged_compaction_keeps_order(head_dim):
    x = heads(2, 3, 8500, head_dim, torch.float16)
    shares = torch.tensor([[0.0, 0.1, 1.0], [0.5, 0.01, 0.3]], device=DEVICE)
    keep = torch.rand(2, 3, 8500, device=DEVICE) < shares[..., None]
    counts = keep.sum(-1).flatten()
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()

    positions = kernels.ragged_positions(keep, starts, int(starts[-1]))

    assert torch.equal(positions.long(), keep.nonzero()[:, -1])
    assert torch.equal(kernels.gather_ragged(x, positions, starts, int(counts.max())), x[keep])
