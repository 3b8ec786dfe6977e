"""NACL: A General and Effective KV Cache Eviction Framework (Chen et al., ACL 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .. import budget, noise
from ..attention import ColumnStatistic
from ..errors import InputError
from ..ops import top_k
from ..tensors import Tensor
from .base import Equal, LayerView, Policy


@dataclass(frozen=True)
class ProxyScore:
    """F_j = Σ_g Σ_{i∈P} a^g_ij: the attention that the last prompt tokens pay to entry j.

    The proxies P carry the question, so they see what matters to it (section 3.2, equation 4).

    Attributes:
        proxy_tokens_ratio: |P| / N; at least one row.
    """

    proxy_tokens_ratio: float = 0.01

    def __post_init__(self) -> None:
        budget.ratio(self.proxy_tokens_ratio, "proxy_tokens_ratio")

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        rows = budget.share(n, budget.ratio(self.proxy_tokens_ratio, "proxy_tokens_ratio"))
        return (ColumnStatistic("sum", rows=max(1, rows)),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return view.columns[0]


@dataclass(frozen=True)
class ProxyAndRandom:
    """The best by score, then a draw from the rest with probability ∝ softmax(score).

    Each head draws on its own (section 3.3). Adding Gumbel noise and taking the largest is that
    draw, without replacement. All ratios are of the prompt's length.

    Attributes:
        protect: share of the sinks and the recent tokens together.
        proxy: share kept by score.
        random: share drawn.
        sink_tokens: sinks wanted; they get at most half of the protected share.
        temperature: divides the scores before the draw.
    """

    protect: Fraction
    proxy: Fraction
    random: Fraction
    sink_tokens: int = 256
    temperature: float = 1.0

    def protected(self, n: int, budget_: int) -> tuple[int, int]:
        """See :class:`~kvevict.methods.base.Selector`."""
        both = min(budget.share(n, self.protect), budget_)
        sinks = min(self.sink_tokens, both // 2)
        return sinks, both - sinks

    def __call__(self, scores: Tensor, counts: list[int], view: LayerView, n: int) -> Tensor:
        """See :class:`~kvevict.methods.base.Selector`."""
        by_score = budget.share(n, self.proxy)
        base = budget.share(n, self.protect + self.proxy + self.random)
        base = max(base - budget.share(n, self.protect), 1)
        # An allocation that is not equal gives both parts in the same proportion.
        best = [min(count, count * by_score // base) for count in counts]
        chosen = top_k(scores, best)
        drawn = [count - sure for count, sure in zip(counts, best)]
        if not any(drawn):
            return chosen
        noisy = scores / self.temperature
        noisy = noisy + noise.gumbel(view.noise_keys, scores.shape[-1], like=scores)
        return chosen | top_k(noisy.masked_fill(chosen, -float("inf")), drawn)


def NACL(
    keep_ratio: float | None = None,
    proxy_tokens_ratio: float = 0.01,
    proxy_token_keep_ratio: float = 0.12,
    random_token_keep_ratio: float = 0.07,
    token_protect_ratio: float = 0.01,
    sink_tokens: int = 256,
    temperature: float = 1.0,
    **common,
) -> Policy:
    """NACL with the names and defaults of its release.

    Args:
        keep_ratio: scales the three shares so that they add up to it; None takes them as given.
        proxy_tokens_ratio: share of the prompt's tokens that score.
        proxy_token_keep_ratio: share kept by score.
        random_token_keep_ratio: share drawn at random.
        token_protect_ratio: share of sinks and recent tokens together.
        sink_tokens: first tokens kept, at most half of the protected share.
        temperature: of the draw; the paper's is 1.
        common: fields of :class:`~kvevict.methods.base.Policy`.

    Raises:
        InputError: a ratio is outside [0, 1], or the three add up to more than 1 or to 0.
    """
    shares = {
        "token_protect_ratio": token_protect_ratio,
        "proxy_token_keep_ratio": proxy_token_keep_ratio,
        "random_token_keep_ratio": random_token_keep_ratio,
    }
    parts = [budget.ratio(value, name) for name, value in shares.items()]
    total = sum(parts)
    if not 0 < total <= 1:
        raise InputError(f"{', '.join(shares)} must add up to between 0 and 1, not {float(total)}")
    if sink_tokens < 0:
        raise InputError(f"sink_tokens must not be negative, not {sink_tokens}")
    if not temperature > 0:
        raise InputError(f"temperature must be above 0, not {temperature}")
    if keep_ratio is not None:
        parts = [part * budget.ratio(keep_ratio, "keep_ratio") / total for part in parts]
    return Policy(
        "nacl",
        ProxyScore(proxy_tokens_ratio),
        Equal(),
        ProxyAndRandom(*parts, sink_tokens=sink_tokens, temperature=temperature),
        keep_ratio=float(total) if keep_ratio is None else keep_ratio,
        **common,
    )
