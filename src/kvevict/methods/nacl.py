"""NACL: A General and Effective KV Cache Eviction Framework (Chen et al., ACL 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, Union

from .. import noise
from ..attention import ColumnStatistic
from ..budget import Ratio, share
from ..errors import InputError
from ..ops import top_k
from ..tensors import Tensor
from .base import LayerView, PromptShape, Scorer, Selector
from .policy import Policy
from .settings import later

ProxyTokens = Union[int, Literal["question"], None]


class Proxies(Scorer):
    """F_j = Σ_g Σ_{i∈P} a^g_ij: the attention that the last prompt tokens pay to entry j.

    The proxies P carry the question, so they see what matters to it (section 3.2, equation 4). Base
    of the scores that differ in how many there are.

    Attributes:
        proxy_tokens: |P|, or ``question``: as many as the prompt's question has tokens. None for a
            share of the prompt.
    """

    proxy_tokens: ProxyTokens

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.proxy_tokens, int) and self.proxy_tokens < 1:
            raise InputError(f"proxy_tokens must be at least 1, not {self.proxy_tokens}")

    def share(self, prompt: PromptShape) -> Fraction:
        """|P| / N where no number is given; at least one row."""
        raise InputError(f"{type(self).__name__} must define share(prompt)")

    def statistics(self, prompt: PromptShape) -> tuple[ColumnStatistic, ...]:
        rows = self.proxy_tokens
        if rows is None:
            rows = max(1, share(prompt.tokens, self.share(prompt)))
        elif rows == "question":
            rows = prompt.question_tokens
            if rows is None:
                raise InputError(
                    "the proxies are the question's tokens, and nobody said how many these are: "
                    "give prefill question_tokens, or the method a number of proxy_tokens"
                )
        return (ColumnStatistic("sum", rows=rows),)

    def __call__(self, view: LayerView) -> Tensor:
        return view.statistics[0]


@dataclass(frozen=True)
class ProxyScore(Proxies):
    """NACL's score; the proxies are a share of the prompt as in its release, unless told.

    Attributes:
        proxy_tokens_ratio: |P| / N; at least one row.
        proxy_tokens: see :class:`Proxies`.
    """

    proxy_tokens_ratio: Ratio = Ratio(0.01)
    proxy_tokens: ProxyTokens = later(None)

    def share(self, prompt: PromptShape) -> Fraction:
        return self.proxy_tokens_ratio.exact


class Draw(Selector):
    """The best by score, then a draw from the rest with probability ∝ softmax(score).

    Each head draws on its own (section 3.3). Adding Gumbel noise and taking the largest is that
    draw, without replacement. Base of the selectors that differ in their shares.

    Attributes:
        sink_tokens: sinks wanted; they get at most half of the protected share.
        temperature: divides the scores before the draw.
    """

    sink_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sink_tokens < 0:
            raise InputError(f"sink_tokens must not be negative, not {self.sink_tokens}")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, not {self.temperature}")

    def shares(self, prompt: PromptShape) -> tuple[Fraction, Fraction, Fraction]:
        """Of the prompt: protected, by score and drawn, together what is kept of it."""
        raise InputError(f"{type(self).__name__} must define shares(prompt)")

    def protected(self, prompt: PromptShape, entries: int) -> tuple[int, int]:
        both = min(share(prompt.tokens, self.shares(prompt)[0]), entries)
        sinks = min(self.sink_tokens, both // 2)
        return sinks, both - sinks

    def __call__(
        self, scores: Tensor, counts: list[int], view: LayerView, prompt: PromptShape
    ) -> Tensor:
        best = self._by_score(counts, prompt)
        chosen = top_k(scores, best)
        drawn = [count - sure for count, sure in zip(counts, best)]
        if not any(drawn):
            return chosen
        noisy = scores / self.temperature
        noisy = noisy + noise.gumbel(view.noise_keys, scores.shape[-1], like=scores)
        return chosen | top_k(noisy.masked_fill(chosen, -float("inf")), drawn)

    def _by_score(self, counts: list[int], prompt: PromptShape) -> list[int]:
        """Of each head's entries, how many go by score.

        Of an equal share these are floor(proxy · N), and the draw gets what is left of it, the
        remainders of all three floors included: one or two entries, but none where nothing is to
        be drawn. An allocation that is not equal gives both in the same proportion.
        """
        n, (protect, proxy, random) = prompt.tokens, self.shares(prompt)
        if random == 0:
            return counts
        equal = max(1, share(n, prompt.keep) - share(n, protect))
        return [count * share(n, proxy) // equal for count in counts]


@dataclass(frozen=True)
class ProxyAndRandom(Draw):
    """NACL's selection; the shares keep their proportions, whatever is kept.

    Attributes:
        protect: share of the sinks and the recent tokens together.
        proxy: share kept by score.
        random: share drawn. The three are of the prompt's length where they add up to what is
            kept of it; otherwise they are scaled until they do.
        sink_tokens, temperature: see :class:`Draw`.
    """

    protect: Fraction = Fraction("0.01")
    proxy: Fraction = Fraction("0.12")
    random: Fraction = Fraction("0.07")
    sink_tokens: int = 256
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = (self.protect, self.proxy, self.random)
        if min(parts) < 0 or not 0 < sum(parts) <= 1:
            raise InputError(
                f"protect, proxy and random must add up to between 0 and 1, not {float(sum(parts))}"
            )

    def shares(self, prompt: PromptShape) -> tuple[Fraction, Fraction, Fraction]:
        scale = prompt.keep / (self.protect + self.proxy + self.random)
        return self.protect * scale, self.proxy * scale, self.random * scale


@dataclass(frozen=True)
class NACL(Policy):
    """NACL with the names and defaults of its release.

    Attributes:
        keep_ratio: scales the three shares so that they add up to it; None takes them as they are.
            A budget in entries scales them likewise.
        proxy_tokens_ratio: share of the prompt's tokens that score.
        proxy_tokens: how many score, in place of a share: a number, or ``question`` for the tokens
            of the question, which the method's paper means; ``prefill`` is told how many these are.
        proxy_token_keep_ratio: share kept by score.
        random_token_keep_ratio: share drawn at random.
        token_protect_ratio: share of sinks and recent tokens together.
        sink_tokens: first tokens kept, at most half of the protected share.
        temperature: of the draw; the paper's is 1.

    Raises:
        InputError: a ratio is outside [0, 1], or the three add up to more than 1 or to 0.
    """

    name: ClassVar[str] = "nacl"

    proxy_tokens_ratio: Ratio = Ratio(0.01)
    proxy_token_keep_ratio: Ratio = Ratio(0.12)
    random_token_keep_ratio: Ratio = Ratio(0.07)
    token_protect_ratio: Ratio = Ratio(0.01)
    sink_tokens: int = 256
    temperature: float = 1.0
    proxy_tokens: ProxyTokens = None

    @property
    def default_keep_ratio(self) -> Ratio:
        """What the three shares add up to."""
        names = ("token_protect_ratio", "proxy_token_keep_ratio", "random_token_keep_ratio")
        total = sum(getattr(self, name).exact for name in names)
        if not 0 < total <= 1:
            raise InputError(
                f"{', '.join(names)} must add up to between 0 and 1, not {float(total)}"
            )
        return Ratio(total)

    @property
    def scorer(self) -> Scorer:
        return ProxyScore(self.proxy_tokens_ratio, self.proxy_tokens)

    @property
    def selector(self) -> Selector:
        keep = self.default_keep_ratio if self.keep_ratio is None else self.keep_ratio
        scale = keep.exact / self.default_keep_ratio.exact
        return ProxyAndRandom(
            protect=self.token_protect_ratio.exact * scale,
            proxy=self.proxy_token_keep_ratio.exact * scale,
            random=self.random_token_keep_ratio.exact * scale,
            sink_tokens=self.sink_tokens,
            temperature=self.temperature,
        )
