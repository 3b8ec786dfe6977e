"""Counter-based noise: a hash of (seed, example, layer, head, position), no state.

The same numbers come out on any device, in any process layout and after any restart, because
nothing is drawn in sequence. :func:`uniform` gives multiples of 2⁻²³ plus 2⁻²⁴, exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

from .ops import uniform
from .tensors import Tensor, integers, namespace

Keys = Union[list, Callable[[Tensor], Tensor]]  # 32-bit numbers, or what sends them to a device
_MASK = 0xFFFFFFFF


def key(*counters: int) -> int:
    """Hash small integers (seed, example, layer, head, …) into 32 bits, in order."""
    state = 0x9E3779B9
    for counter in counters:
        state = _mix_int((state ^ (counter & _MASK)) * 0x2545F491 + 0x9E3779B9 & _MASK)
    return state


class LayerKeys:
    """Keys of the kv heads of every layer, in one prompt.

    Args:
        seed, example: what they are of.
        layers, kv_heads: how many there are.
    """

    def __init__(self, seed: int, example: int, layers: int, kv_heads: int) -> None:
        self._counters, self._layers, self._heads = (seed, example), layers, kv_heads
        self._sent: Tensor | None = None

    def __call__(self, layer: int, step: int = 0) -> list[int]:
        """Those of a layer; ``step`` counts evictions while decoding."""
        return [key(*self._counters, layer, head, step) for head in range(self._heads)]

    def send(self, layer: int, like: Tensor) -> Tensor:
        """The same for the prompt, int64 ``[kv_heads]`` where ``like`` lies.

        Those of all layers go there with the first: Paddle's host waits for whatever it sends.
        """
        if self._sent is None:
            every = [self(index) for index in range(self._layers)]
            self._sent = integers(every, namespace(like).int64, like=like)
        return self._sent[layer]


def _mix_int(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & _MASK
    x ^= x >> 15
    x = x * 0x45D9F3B & _MASK
    return x ^ x >> 16


def gumbel(keys: Keys, length: int, like: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 ``[len(keys), length]``.

    The k largest of (logits + Gumbel noise) are k draws without replacement with probability
    proportional to softmax(logits) (Kool et al., ICML 2019).
    """
    return -(-uniform(keys, length, like).log()).log()
