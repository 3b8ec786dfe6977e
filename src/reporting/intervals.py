"""Means with 95% intervals, where examples come in clusters.

Synthetic examples of one task and index hide the same thing at the same depth at every length, so
their scores go together: they are one cluster, and only clusters count as independent. An example
that is alone in its cluster counts as ever.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5% quantile


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float


def estimate(scores: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """The mean of scores in [0, 1] with its interval.

    Wilson's score interval, its n the effective one: as many independent scores of 0 or 1 as would
    have a mean of the same variance (Korn and Graubard, Survey Methodology 1998). For scores of 0
    and 1 that stand alone that is their number. Where all clusters score alike the variance tells
    nothing, and n is the number of clusters.

    Args:
        clusters: the cluster of each score.
    """
    center, rests = _rests(scores, clusters)
    variance = float(rests @ rests)
    n = center * (1 - center) / variance if variance > 1e-12 else len(rests)
    shrunk = (center + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(center * (1 - center) / n + (Z / (2 * n)) ** 2)
    return Estimate(center, max(0.0, shrunk - half), min(1.0, shrunk + half))


def difference(gaps: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """The mean of paired differences, each in [-1, 1], with its normal interval.

    Its variance is that between clusters (Liang and Zeger, Biometrika 1986, with the usual factor
    for few clusters); one cluster alone has none, and its interval reaches 1 to either side.
    """
    center, rests = _rests(gaps, clusters)
    count = len(rests)
    half = Z * math.sqrt(rests @ rests * count / (count - 1)) if count > 1 else 1.0
    return Estimate(center, center - half, center + half)


def average(parts: list[Estimate]) -> Estimate:
    """The mean of independent estimates, such as those of several tasks.

    Its interval is recovered from theirs: distances from mean to bound add up as squares (MOVER;
    Zou and Donner, Statistics in Medicine 2008).
    """
    center = mean(part.mean for part in parts)
    below = math.hypot(*(part.mean - part.low for part in parts)) / len(parts)
    above = math.hypot(*(part.high - part.mean for part in parts)) / len(parts)
    return Estimate(center, center - below, center + above)


def _rests(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, np.ndarray]:
    """The mean, and how far each cluster takes it from what it would be were the cluster average.

    The squares of these sum up to the variance of the mean.
    """
    numbers: dict[Hashable, int] = {}
    of_value = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    own = np.asarray(values, dtype=float)
    center = float(own.mean())
    return center, np.bincount(of_value, own - center) / len(own)
