"""Forms of NACL that a study compares with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..attention import ColumnStatistic
from ..errors import InputError
from ..tensors import Tensor
from .base import LayerView, Policy
from .nacl import NACL, ProxyScore
from .snapkv import check_window, pooled

HEADS = ("group", "release", "next", "layer")


@dataclass(frozen=True)
class ProxyVariant(ProxyScore):
    """NACL's score as its release computes it for grouped queries, of other heads, or pooled.

    The release was written for one query head to each kv head. Run on more, it gives kv head h the
    score of query head h, which mostly belongs to another group, and it applies no mask among the
    proxy rows, so that they see the tokens after themselves.

    Attributes:
        heads: whose attention scores for kv head h: its ``group``'s; query head h's alone, as in
            the ``release``; the ``next`` group's; or that of all heads of the ``layer``.
        causal: False for proxies without a mask.
        kernel: positions averaged, as SnapKV does; 1 for none.
    """

    heads: str = "group"
    causal: bool = True
    kernel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(1, self.kernel)
        if self.heads not in HEADS:
            raise InputError(f"heads must be one of {', '.join(HEADS)}, not {self.heads!r}")

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        (sums,) = super().statistics(n)
        return (replace(sums, per_kv_head=self.heads != "release", causal=self.causal),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        scores = view.columns[0]
        kv_heads, n = scores.shape[0], scores.shape[-1]
        if self.heads == "release":
            scores = scores.reshape(-1, n)[:kv_heads]
        elif self.heads == "next":
            scores = scores.roll(-1, 0)
        elif self.heads == "layer":
            scores = scores.sum(dim=0, keepdim=True).expand(kv_heads, n)
        return pooled(scores, 0, self.kernel)


def NACLVariant(
    keep_ratio: float = 0.2,
    random: bool = True,
    heads: str = "group",
    causal: bool = True,
    kernel: int = 1,
    **common,
) -> Policy:
    """NACL under another score.

    Args:
        keep_ratio: as for :func:`~kvevict.methods.nacl.NACL`.
        random: False to keep by score what NACL draws.
        heads, causal, kernel: see :class:`ProxyVariant`.
        common: fields of :class:`~kvevict.methods.base.Policy`.
    """
    shares = {} if random else {"proxy_token_keep_ratio": 0.19, "random_token_keep_ratio": 0.0}
    policy = NACL(keep_ratio, **shares, **common)
    scorer = ProxyVariant(policy.scorer.proxy_tokens_ratio, heads, causal, kernel)
    return replace(policy, name="nacl-variant", scorer=scorer)
