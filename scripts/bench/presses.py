"""kvpress's presses that do what our policies do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvevict.methods import Policy

Press = Any  # a kvpress.BasePress; kvpress is imported where one is made


def press_of(policy: Policy, tokens: int, prefix: int) -> Press:
    """The press of a policy's method at the policy's settings, for a context of ``tokens`` tokens.

    It keeps as many entries as the policy does, whatever a share of them comes to in kvpress.

    Args:
        policy: named as one of ``PRESSES``.
        prefix: tokens before the context. KVzip's authors keep them all, kvpress by ``n_sink``.
    """
    # kvpress rounds down what is kept, and under KVzip what is not.
    spare = SPARE if policy.name == "kvzip" else -SPARE
    evicted = max(0.0, tokens - policy.entries(tokens) + spare) / tokens
    return PRESSES[policy.name](policy, evicted, prefix)


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


SPARE = 1e-4  # entries, so that a product of floats does not fall short of a whole number
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
