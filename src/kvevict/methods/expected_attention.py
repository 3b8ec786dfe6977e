"""Expected attention (arXiv 2510.00636): what queries like the prompt's would attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ..attention import QueryMoments
from ..errors import InputError
from ..scoring import by_chunks
from ..tensors import Tensor, namespace
from .base import LayerView, PromptShape, Scorer, Selector
from .parts import TopK
from .policy import Policy


@dataclass(frozen=True)
class ExpectedScore(Scorer):
    """(mean_g softmax_j(k_j · Rμ_g / √d + k_j · RΣ_gRᵀ k_j / 2d) + ε) · ‖v_j‖₂.

    The logarithm of E[exp(q · k_j / √d)] for a Gaussian q, whose mean μ and covariance Σ are those
    of the prompt's queries before RoPE; R is RoPE, averaged over the positions to come. The softmax
    is over the entries behind the sinks, which share the highest score.

    Attributes:
        n_future_positions: over which R is averaged.
        n_sink: first tokens whose queries and entries take no part.
        use_covariance: off for the first term alone.
        use_vnorm: off for the attention alone.
        epsilon: ε, which lets entries without attention compete by their values.
    """

    prompt_only: ClassVar[bool] = True

    n_future_positions: int = 512
    n_sink: int = 4
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_future_positions < 1:
            raise InputError(
                f"n_future_positions must be at least 1, not {self.n_future_positions}"
            )
        if self.n_sink < 0 or self.epsilon < 0:
            raise InputError("n_sink and epsilon must not be negative")

    def statistics(self, prompt: PromptShape) -> tuple[QueryMoments, ...]:
        return (QueryMoments(self.n_sink),)

    def __call__(self, view: LayerView) -> Tensor:
        kv_heads, n, _ = view.keys.shape
        sinks = min(self.n_sink, n)
        if sinks == n:
            return view.keys.new_zeros((kv_heads, n)).float()
        scores = by_chunks(self._logits(view), view.keys[:, sinks:])
        scores = scores.softmax(dim=-1).mean(dim=1)
        if self.use_vnorm:
            values = view.values[:, sinks:].float()
            scores = (scores + self.epsilon) * (values * values).sum(dim=-1).sqrt()
        if not sinks:
            return scores
        highest = scores.amax(-1, True).expand(kv_heads, sinks)
        return namespace(scores).cat([highest, scores], dim=-1)

    def _logits(self, view: LayerView) -> Callable[[Tensor], Tensor]:
        """What gives some keys ``[kv_heads, entries, head_dim]`` their logits by query head."""
        mean, covariance = view.statistics[0]
        head_dim, ahead = mean.shape[-1], self.n_future_positions
        mean = view.rotate_ahead(mean, ahead) * head_dim**-0.5
        # R Σ Rᵀ: its rows turned, then its columns.
        half = view.rotate_ahead(covariance, ahead).swapaxes(-1, -2)
        covariance = view.rotate_ahead(half, ahead) / (2 * head_dim)

        def logits(keys: Tensor) -> Tensor:
            keys = keys.float().unsqueeze(1)
            linear = (mean.unsqueeze(2) @ keys.swapaxes(-1, -2)).squeeze(2)
            if not self.use_covariance:
                return linear
            return linear + (keys @ covariance * keys).sum(dim=-1)

        return logits


@dataclass(frozen=True)
class ExpectedAttention(Policy):
    """Expected attention: no question has to be known. As in kvpress, where it comes from.

    Attributes:
        n_future_positions: positions after the prompt over which RoPE is averaged.
        n_sink: first tokens, always kept, whose queries do not count.
        use_covariance: off for the mean query alone.
        use_vnorm: off for scores without the values' norms.
        epsilon: added to the expected attention before the norms multiply it.
    """

    name: ClassVar[str] = "expected_attention"

    n_future_positions: int = 512
    n_sink: int = 4
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: float = 0.0

    @property
    def scorer(self) -> Scorer:
        return ExpectedScore(
            self.n_future_positions,
            self.n_sink,
            self.use_covariance,
            self.use_vnorm,
            self.epsilon,
        )

    @property
    def selector(self) -> Selector:
        return TopK(n_sink=self.n_sink)
