"""kvpress's presses that do what our policies do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kvevict.methods import Policy

Press = Any  # a kvpress.BasePress; kvpress is imported where one is made


def press_of(policy: Policy, prefix: int) -> Press | None:
    """The press of a policy's method at the policy's settings; None where kvpress has none.

    Args:
        policy: with a ``keep_ratio``.
        prefix: tokens before the context. KVzip's authors keep them all, kvpress by ``n_sink``.
    """
    make = PRESSES.get(policy.name)
    evicted = math.nextafter(1 - policy.keep_ratio, 0)  # 1 - (1 - 0.2) keeps less than a fifth
    return make(policy, evicted, prefix) if make else None


def _snapkv(policy: Policy, evicted: float, prefix: int) -> Press:
    import kvpress

    return kvpress.SnapKVPress(evicted, policy.scorer.window_size, policy.scorer.kernel_size)


def _expected(policy: Policy, evicted: float, prefix: int) -> Press:
    import kvpress

    own = policy.scorer
    return kvpress.ExpectedAttentionPress(
        evicted,
        own.n_future_positions,
        own.n_sink,
        own.use_covariance,
        own.use_vnorm,
        own.epsilon,
    )


def _kvzip(policy: Policy, evicted: float, prefix: int) -> Press:
    import kvpress

    own = policy.scorer
    return kvpress.KVzipPress(evicted, n_sink=max(own.n_sink, prefix), chunk_size=own.chunk_size)


def _streamingllm(policy: Policy, evicted: float, prefix: int) -> Press:
    import kvpress

    return kvpress.StreamingLLMPress(evicted, policy.selector.n_sink)


def _shared(make: Callable[..., Press]) -> Callable[..., Press]:
    def shared(policy: Policy, evicted: float, prefix: int) -> Press:
        import kvpress

        scores = make(policy, evicted, prefix)
        return kvpress.AdaKVPress(scores, float(policy.allocator.alpha_safeguard))

    return shared


def _plain(name: str) -> Callable[..., Press]:
    def plain(policy: Policy, evicted: float, prefix: int) -> Press:
        import kvpress

        return getattr(kvpress, name)(evicted)

    return plain


PRESSES: dict[str, Callable[..., Press]] = {
    "snapkv": _snapkv,
    "adakv": _shared(_snapkv),
    "tova": _plain("TOVAPress"),
    "streamingllm": _streamingllm,
    "keynorm": _plain("KnormPress"),
    "keydiff": _plain("KeyDiffPress"),
    "expected_attention": _expected,
    "expected_attention-layer_shared": _shared(_expected),
    "kvzip": _kvzip,
}
