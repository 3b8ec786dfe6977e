"""Intervals: closed forms, what clusters do to them, and how often they hold the truth."""

from __future__ import annotations

import math
from statistics import stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reporting.intervals import Z, average, difference, estimate

scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)
cluster_sizes = st.lists(st.integers(1, 5), min_size=2, max_size=20)


def alone(values):
    return estimate(values, range(len(values)))


def width(interval):
    return interval.high - interval.low


def test_wilson_solves_its_equation():
    """Its bounds are where the observed share is exactly z standard errors away."""
    for wins, n in ((0, 10), (3, 10), (10, 10), (97, 100)):
        found = alone([1.0] * wins + [0.0] * (n - wins))
        for bound in (found.low, found.high):
            error = math.sqrt(max(0, bound * (1 - bound) / n))
            assert abs(wins / n - bound) == pytest.approx(Z * error, abs=1e-6)
        assert (found.low < 1e-9) == (wins == 0)
        assert (found.high > 1 - 1e-9) == (wins == n)


@given(scores, st.integers(1, 4))
def test_an_example_at_several_lengths_that_scores_alike_counts_once(values, lengths):
    """Clusters whose members agree tell exactly as much as one member each."""
    clusters = list(range(len(values))) * lengths
    for interval in (estimate, difference):
        once = interval(values, range(len(values)))
        again = interval(values * lengths, clusters)
        assert vars(again) == pytest.approx(vars(once), abs=1e-9)


@given(cluster_sizes, st.randoms(use_true_random=False))
def test_what_a_cluster_is_called_and_the_order_of_scores_do_not_matter(sizes, random):
    pairs = [(random.random(), cluster) for cluster, n in enumerate(sizes) for _ in range(n)]
    shuffled = random.sample(pairs, len(pairs))
    for interval in (estimate, difference):
        one = interval(*zip(*pairs))
        other = interval([x for x, _ in shuffled], [("task", c) for _, c in shuffled])
        assert vars(one) == pytest.approx(vars(other), abs=1e-9)


def test_a_difference_without_clusters_has_the_textbook_interval():
    gaps = [0.5, -1.0, 0.0, 0.25, 1.0]
    found = difference(gaps, "abcde")
    half = Z * stdev(gaps) / math.sqrt(5)
    assert (found.mean, found.high - found.mean) == pytest.approx((0.15, half))
    assert found.mean - found.low == pytest.approx(half)
    assert width(difference([0.5, 0.5], "aa")) == 2


def draw(rng, count, per, truth, shared):
    """Scores of 0 and 1, ``per`` in each of ``count`` clusters, with mean ``truth``; a score is
    its cluster's own with probability ``shared``, else drawn anew."""
    own = np.repeat(rng.random(count) < truth, per)
    new = rng.random(count * per) < truth
    return np.where(rng.random(count * per) < shared, own, new).astype(float)


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("truth", [0.2, 0.5, 0.9])
def test_intervals_cover_the_truth_as_often_as_they_say(shared, truth):
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(50), 4)
    hits = naive = 0
    for _ in range(1500):
        drawn = draw(rng, 50, 4, truth, shared)
        found, independent = estimate(drawn, clusters), alone(drawn)
        hits += found.low <= truth <= found.high
        naive += independent.low <= truth <= independent.high
    assert 0.92 <= hits / 1500 <= 0.98
    if shared == 1:
        assert naive / 1500 < 0.85, "taken as independent they are too narrow"


def test_intervals_of_scores_between_0_and_1_cover_too():
    rng = np.random.default_rng(1)
    found = [alone(rng.beta(2, 1, 50)) for _ in range(400)]
    assert 0.92 <= sum(one.low <= 2 / 3 <= one.high for one in found) / 400 <= 0.98


def test_they_agree_with_a_bootstrap_over_clusters():
    """Of clusters of different sizes, each drawn whole."""
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 6, 200)
    clusters = np.repeat(np.arange(200), sizes)
    values = np.clip(np.repeat(rng.random(200), sizes) + rng.normal(0, 0.1, sizes.sum()), 0, 1)
    picks = rng.integers(200, size=(20_000, 200))
    sums = np.bincount(clusters, values)
    low, high = np.percentile(sums[picks].sum(1) / sizes[picks].sum(1), (2.5, 97.5))
    for interval in (estimate, difference):
        found = interval(values, clusters)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))
        assert width(interval(values, range(len(values)))) < 0.75 * width(found)


@given(cluster_sizes, st.randoms(use_true_random=False), st.booleans())
def test_a_mean_lies_in_its_interval_and_that_in_0_to_1(sizes, random, binary):
    clusters = [cluster for cluster, n in enumerate(sizes) for _ in range(n)]
    values = [float(random.random() < 0.5) if binary else random.random() for _ in clusters]
    found = estimate(values, clusters)
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1


def test_where_all_agree_a_cluster_counts_as_one_score():
    assert estimate([0.0] * 200, list(range(50)) * 4) == alone([0.0] * 50)
    assert 0.05 < alone([0.0] * 50).high < 0.1
    assert width(alone([0.5] * 4)) > 0.5


@given(st.lists(scores, min_size=1, max_size=4))
def test_a_mean_over_tasks_is_no_less_certain_than_its_tasks(values):
    parts = [alone(task) for task in values]
    whole = average(parts)
    assert whole.mean == pytest.approx(sum(p.mean for p in parts) / len(parts))
    assert width(whole) <= max(map(width, parts)) + 1e-12
    assert average(parts[:1]).low == pytest.approx(parts[0].low)
