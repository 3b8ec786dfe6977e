"""How many cache entries may be kept: exact integer arithmetic, no tensors.

Every count here is the floor of a decimal ratio times a length, computed on fractions, so that
``0.29 * 100`` is 29 and not 28. All methods given one ratio and one length keep the same total.
"""

from __future__ import annotations

from fractions import Fraction
from math import isfinite
from numbers import Real

from .errors import InputError


class Ratio(float):
    """A share between 0 and 1 that remembers the decimal it was written as.

    Elsewhere a plain number; ``Ratio(0.29).of(100)`` is 29.

    Attributes:
        exact: the decimal as a fraction.

    Args:
        value: a number.
        name: of the setting that it is, for the message.

    Raises:
        InputError: it is not a number between 0 and 1.
    """

    exact: Fraction

    def __new__(cls, value: object, name: str = "a ratio") -> Ratio:
        if not isinstance(value, Real) or isinstance(value, bool) or not isfinite(value):
            raise InputError(f"{name} must be a number between 0 and 1, not {value!r}")
        exact = value.exact if isinstance(value, Ratio) else Fraction(str(value))
        if not 0 <= exact <= 1:
            raise InputError(f"{name} must lie between 0 and 1, not {value}")
        self = super().__new__(cls, exact)
        self.exact = exact
        return self

    def of(self, n: int) -> int:
        """This share of ``n`` entries, rounded down."""
        return share(n, self.exact)


def share(n: int, part: Fraction) -> int:
    """Entries in ``part`` of ``n``: floor(part · n)."""
    return n * part.numerator // part.denominator


def per_head(n: int, keep: Fraction) -> int:
    """Entries that a kv head may keep of an ``n``-token prompt, protected ones included.

    At least one, so that attention always has something to attend to.
    """
    return max(1, share(n, keep))


def protected(budget: int, sinks: int, recent: int) -> tuple[int, int]:
    """Cut the protected spans to what the budget holds; recent tokens go first.

    Returns:
        ``(sinks, recent)``, neither negative, together at most ``budget``.
    """
    recent = min(recent, budget)
    return min(sinks, budget - recent), recent


def spread(total: int, weights: list[Fraction]) -> list[int]:
    """Split ``total`` in proportion to ``weights``, in integers that add up to it exactly.

    Each prefix sum is rounded down, so no part is off by as much as one.
    """
    whole = sum(weights)
    sums, seen = [0], Fraction(0)
    for weight in weights:
        seen += weight
        sums.append(share(total, seen / whole))
    return [after - before for before, after in zip(sums, sums[1:])]


def pyramid(average: int, layers: int, beta: int, cap: int) -> list[int]:
    """Entries per head for each layer, falling linearly, ``average · layers`` in total.

    The top layer gets ``average / beta`` and the lowest what balances it (PyramidKV, section 4.2).
    Where the lowest would get more than the ``cap`` entries there are, the slope is flattened.
    """
    if layers == 1 or average == 0:
        return [average] * layers
    lowest = min(2 * average - Fraction(average, beta), Fraction(cap))
    highest = 2 * average - lowest
    step = (lowest - highest) / (layers - 1)
    return spread(average * layers, [lowest - step * layer for layer in range(layers)])
