"""What two computations of the same numbers in float32 may differ by."""

from __future__ import annotations

import numpy as np


def assert_same(got, expected) -> None:
    """Equal but for the order of summation, which libraries choose by processor, shape and threads.

    Two orders of a sum of n products differ by at most 2nu of the sum of their sizes, u = 2⁻²⁴, and
    mostly by √n u. What the tests' models compute went through at most three layers of seven
    products of up to 192 terms, mostly 3·7·√192·u ≈ 2·10⁻⁵ of the largest number; five times that
    is let pass. One entry in a hundred fewer in the cache moves logits by a hundred times as much.
    """
    got, expected = (np.asarray(x.detach().numpy(), np.float64) for x in (got, expected))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
