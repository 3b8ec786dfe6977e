"""NACL with the shares of its paper's experiments, where its release has others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

from .base import PromptShape, Scorer, Selector
from .nacl import Draw, Proxies, ProxyTokens
from .policy import Policy


class Shares(NamedTuple):
    """Shares of the prompt.

    Attributes:
        protect, proxy, random: protected, kept by score and drawn, together what is kept.
        rows: that score.
    """

    protect: Fraction
    proxy: Fraction
    random: Fraction
    rows: Fraction


# Table 4: 10, 20 and 30% kept.
TABLE = [
    Shares(*map(Fraction, row))
    for row in (
        ("0.01", "0.02", "0.07", "0.03"),
        ("0.02", "0.06", "0.12", "0.18"),
        ("0.015", "0.105", "0.18", "0.2"),
    )
]
KEPT = [sum(row[:3]) for row in TABLE]


def shares(keep: Fraction) -> Shares:
    """The paper's shares for what is kept: linear between its rows; beyond them, the nearest row's
    proportions and rows that score."""
    inside = min(max(keep, KEPT[0]), KEPT[-1])
    upper = next(index for index, kept in enumerate(KEPT) if inside <= kept) or 1
    part = (inside - KEPT[upper - 1]) / (KEPT[upper] - KEPT[upper - 1])
    *kept, rows = (a + (b - a) * part for a, b in zip(TABLE[upper - 1], TABLE[upper]))
    return Shares(*(share * keep / inside for share in kept), rows)


@dataclass(frozen=True)
class PaperProxyScore(Proxies):
    """NACL's score with the paper's number of rows.

    Attributes:
        proxy_tokens: see :class:`~kvevict.methods.nacl.Proxies`.
    """

    proxy_tokens: ProxyTokens = None

    def share(self, prompt: PromptShape) -> Fraction:
        return shares(prompt.keep).rows


@dataclass(frozen=True)
class PaperProxyAndRandom(Draw):
    """NACL's selection in the paper's shares.

    Attributes:
        sink_tokens, temperature: see :class:`~kvevict.methods.nacl.Draw`.
    """

    sink_tokens: int = 256
    temperature: float = 1.0

    def shares(self, prompt: PromptShape) -> tuple[Fraction, Fraction, Fraction]:
        return shares(prompt.keep)[:3]


@dataclass(frozen=True)
class NACLPaper(Policy):
    """NACL as in its paper: twice as many entries drawn as kept by score, many rows that score.

    The paper has 10, 20 and 30% kept (table 4). In between its shares are interpolated; below and
    above they keep the proportions of the nearest row, which a warning says. A budget in entries
    takes the shares of what it is of the prompt.

    Attributes:
        proxy_tokens: how many rows score, in place of the paper's: a number, or ``question`` for
            the tokens of the question.
        sink_tokens: first tokens kept, at most half of the protected share.
        temperature: of the draw.
    """

    name: ClassVar[str] = "nacl-paper"

    proxy_tokens: ProxyTokens = None
    sink_tokens: int = 256
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_ratio is not None and not KEPT[0] <= self.keep_ratio.exact <= KEPT[-1]:
            warnings.warn(
                f"nacl-paper: its paper keeps 10 to 30%; {self.keep_ratio:g} takes the proportions "
                "of the nearest",
                stacklevel=3,
            )

    @property
    def scorer(self) -> Scorer:
        return PaperProxyScore(self.proxy_tokens)

    @property
    def selector(self) -> Selector:
        return PaperProxyAndRandom(self.sink_tokens, self.temperature)
