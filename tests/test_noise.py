"""Noise against the same hash in plain Python, and against the distributions that it stands for."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import noise

LIKE = paddle.zeros([1])
WORDS = st.integers(0, 2**32 - 1)


def mixed(x: int) -> int:
    """One round of a 32-bit integer hash."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x45D9F3B % 2**32
    return x ^ (x >> 16)


def hashed(key: int, position: int) -> float:
    """The uniform number of one position, in exact arithmetic until the last step."""
    return ((mixed(key ^ position) >> 9) + 0.5) / 2**23


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 300))
def test_uniform_is_the_hash(keys: list[int], length: int) -> None:
    values = noise.uniform(keys, length, LIKE).numpy()
    assert values.dtype == np.float32
    assert values.astype(float).tolist() == [[hashed(k, j) for j in range(length)] for k in keys]
    assert 0 < values.min() <= values.max() < 1


def test_ends_of_the_range_are_open() -> None:
    """No key or position gives 0 or 1, so its Gumbel number is finite."""
    lowest, highest = (np.float32((word + 0.5) / 2**23) for word in (0, 2**23 - 1))
    assert np.isfinite(-np.log(-np.log([lowest, highest]))).all()
    values = noise.gumbel([noise.key(1)], 200_000, LIKE)
    assert bool(values.isfinite().all())


def test_a_longer_prompt_only_adds_numbers() -> None:
    whole = noise.uniform([5, 6], 5000, LIKE).numpy()
    for length in (1, 77, 4096):
        np.testing.assert_array_equal(
            noise.uniform([5, 6], length, LIKE).numpy(), whole[:, :length]
        )
    np.testing.assert_array_equal(noise.uniform([6], 5000, LIKE).numpy(), whole[1:])


def test_uniform_in_distribution() -> None:
    """Twenty bins under each of 50 keys; 99.99% of chi-square with 950 degrees is below 1117."""
    values = noise.uniform([noise.key(i) for i in range(50)], 10_000, LIKE).numpy()
    counts = np.stack([np.histogram(row, 20, (0, 1))[0] for row in values])
    assert ((counts - 500) ** 2 / 500).sum() < 1117
    correlations = np.corrcoef(values) - np.eye(50)
    assert np.abs(correlations).max() < 0.05  # five standard deviations
    lagged = np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]
    assert abs(lagged) < 0.008


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=5), st.data())
def test_key_depends_on_every_counter(counters: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(counters) - 1))
    other = list(counters)
    other[place] += data.draw(st.integers(1, 2**20))
    assert noise.key(*counters) != noise.key(*other)
    assert 0 <= noise.key(*counters) < 2**32


def test_key_depends_on_the_order() -> None:
    keys = {noise.key(*order) for order in itertools.permutations((0, 1, 2, 3))}
    assert len(keys) == 24


def test_gumbel_top_k_draws_without_replacement() -> None:
    """Pairs out of four, drawn 20,000 times, against successive draws with softmax's odds."""
    logits = np.array([0.0, 1.0, -0.5, 0.7])
    odds = np.exp(logits) / np.exp(logits).sum()
    pairs = list(itertools.permutations(range(4), 2))
    expected = np.array([odds[a] * odds[b] / (1 - odds[a]) for a, b in pairs])
    keys = [noise.key(7, example) for example in range(20_000)]
    noisy = noise.gumbel(keys, 4, LIKE) + paddle.to_tensor(logits, dtype="float32")
    drawn = [tuple(pair) for pair in noisy.topk(2, axis=-1)[1].tolist()]
    counts = np.array([drawn.count(pair) for pair in pairs])
    statistic = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
    assert statistic < 37.4  # 99.99% of chi-square with 11 degrees of freedom
