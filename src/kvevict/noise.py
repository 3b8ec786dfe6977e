"""Counter-based noise: a hash of (seed, example, layer, head, position), no state.

The same numbers come out on any device, in any process layout and after any restart, because
nothing is drawn in sequence.
"""

from __future__ import annotations

from .tensors import Tensor, has_kernels, integers, namespace

_MASK = 0xFFFFFFFF


def key(*counters: int) -> int:
    """Hash small integers (seed, example, layer, head, …) into 32 bits, in order."""
    state = 0x9E3779B9
    for counter in counters:
        state = _mix_int((state ^ (counter & _MASK)) * 0x2545F491 + 0x9E3779B9 & _MASK)
    return state


def _mix_int(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & _MASK
    x ^= x >> 15
    x = x * 0x45D9F3B & _MASK
    return x ^ x >> 16


def uniform(keys: list[int], length: int, like: Tensor) -> Tensor:
    """Numbers in (0, 1) for positions 0 … length−1 under each key, on ``like``'s device.

    The multipliers are below 2³¹, so that 32-bit words in int64 never overflow.

    Returns:
        float32 ``[len(keys), length]``; multiples of 2⁻²³ plus 2⁻²⁴, exact in float32.
    """
    ns = namespace(like)
    seeds = integers(keys, ns.int64, like)
    if has_kernels(like):
        from . import kernels

        return kernels.uniform(seeds, length)

    def constant(value: int) -> Tensor:
        return ns.full((1,), value, dtype=ns.int64, device=like.device)

    x = seeds.unsqueeze(-1) ^ ns.arange(length, dtype=ns.int64, device=like.device)
    x = x ^ x // 2**16
    x = x * constant(0x7FEB352D) & constant(_MASK)
    x = x ^ x // 2**15
    x = x * constant(0x45D9F3B) & constant(_MASK)
    x = x ^ x // 2**16
    return ((x // 2**9).to(ns.float32) + 0.5) * 2.0**-23


def gumbel(keys: list[int], length: int, like: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 ``[len(keys), length]``.

    The k largest of (logits + Gumbel noise) are k draws without replacement with probability
    proportional to softmax(logits) (Kool et al., ICML 2019).
    """
    return -(-uniform(keys, length, like).log()).log()
