from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import noise, ops
from tests.kernels.dense import DEVICE, kernels, torch


def check(scores: torch.Tensor, counts: list[int]) -> None:
    """The mask against a stable sort of each row, and the positions against the mask."""
    mask = kernels.top_k(scores, counts)
    order = np.argsort(-scores.cpu().numpy(), axis=1, kind="stable")
    expected = np.zeros(scores.shape, bool)
    for row, best, count in zip(expected, order, counts):
        row[best[:count]] = True
    np.testing.assert_array_equal(mask.cpu().numpy(), expected)
    positions = kernels.positions(mask.reshape(-1), sum(counts))
    np.testing.assert_array_equal(positions.cpu().numpy(), np.flatnonzero(expected))


CASES = [(3, 300, [0, 85, 300]), (2, 20_011, [9_001, 1]), (1, 8192, [4096])]  # several chunks, one
if DEVICE == "cuda":
    CASES += [(8, 131_072, [26_214] * 8), (1, 3_000_017, [1_700_000])]


@pytest.mark.parametrize("levels", [None, 5], ids=["distinct", "ties"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_largest_are_what_sorting_gives(case, levels):
    rows, n, counts = case
    scores = torch.randn(rows, n, device=DEVICE)
    check((scores * levels).round() / levels if levels else scores, counts)


def test_scores_that_share_all_but_their_last_bits():
    ones = torch.ones(1, 9000, device=DEVICE).view(torch.int32)
    scores = (ones + torch.randint(0, 40, (2, 9000), device=DEVICE, dtype=torch.int32)).float()
    check((ones + scores.to(torch.int32)).view(torch.float32), [4000, 17])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_count_of_any_row(data):
    rows, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 200))
    counts = [data.draw(st.integers(0, n)) for _ in range(rows)]
    values = [-np.inf, -2.0, -0.0, 0.0, 1e-40, 2.0, np.inf]  # a negative zero ties with a zero
    choices = st.lists(st.sampled_from(values), min_size=n, max_size=n)
    scores = torch.tensor([data.draw(choices) for _ in range(rows)], device=DEVICE)
    check(scores, counts)


def test_a_mask_that_breaks_its_promise_gives_no_position_outside():
    mask = torch.rand(20_000, device=DEVICE) < 0.5
    few = kernels.positions(mask, 100)
    assert torch.equal(few.long(), mask.nonzero()[:100, 0])
    many = kernels.positions(mask, 20_000)
    assert int(many.min()) >= 0
    assert int(many.max()) < 20_000


def test_noise_is_that_of_the_cpu_bit_for_bit():
    keys = [0, 1, 2**31, 2**32 - 1, noise.key(3, 1, 4)]
    expected = noise.uniform(keys, 5000, torch.zeros(1))
    got = kernels.uniform(torch.tensor(keys, device=DEVICE), 5000)
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("width", [1, 64, 96, 256])
def test_rows_are_copied_as_they_are(width):
    x = torch.randn(301, width, device=DEVICE).half()
    rows = torch.randint(0, 301, (77,), device=DEVICE, dtype=torch.int32)
    keys, values = kernels.take(x, -x, rows)
    assert torch.equal(keys, x[rows.long()]) and torch.equal(values, -x[rows.long()])
    assert [own.shape for own in kernels.take(x, x, rows[:0])] == [(0, width)] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("held", [1, 200, 290])
def test_new_rows_come_where_others_were(held, dtype, monkeypatch):
    """Wherever what is held lies: those that stay are not touched, and each place has one row."""
    kept, new = 300, 2500
    for width in (None, 96):
        shape = (held + new, width) if width else (held + new,)
        x = (torch.randn(shape, device=DEVICE) * 100).to(dtype)
        mask = torch.zeros(held + new, dtype=torch.bool, device=DEVICE)
        mask[torch.randperm(held + new, device=DEVICE)[:kept]] = True
        mask[:held] |= torch.rand(held, device=DEVICE) < 0.5
        mask[held:][mask[held:].nonzero()[: int(mask.sum()) - kept, 0]] = False
        rows, slots = mask.nonzero()[:, 0], torch.randperm(held, device=DEVICE)
        own = x.new_zeros(kept, *shape[1:])
        own[slots] = x[:held]
        staying = mask[:held].sum().reshape(1)
        for gpu in (kernels, None):
            type_ = torch.int32 if gpu else torch.int64
            with monkeypatch.context() as patch:
                patch.setattr(ops, "kernels", lambda x, gpu=gpu: gpu)
                got, after = own.clone(), ops.reuse(mask, rows.to(type_), slots.to(type_), staying)
                ops.put(got, x[held:].contiguous(), rows.to(type_), after, held)
            assert torch.equal(got[after.long()], x[rows])
            assert sorted(after.tolist()) == list(range(kept))
            assert torch.equal(after[: int(staying)].long(), slots[rows[: int(staying)]])
