"""What the backends' decoders share: the rotary tables of one pass."""

from __future__ import annotations

from collections.abc import Callable
from threading import local

from ..engine.session import Start
from ..tensors import Tensor

Tables = tuple  # cosines and sines, [..., tokens, head_dim]


class Rotations(local):
    """Rotary tables of the tokens that pass through a model, made once for all its layers.

    Each thread has its own: prompts in several threads go through the layers at their own pace.
    The first layer has them made and the last lets them go: nothing is held while tokens are
    decoded, or between prompts. The chunks of a long prompt go through one layer after the other,
    so the tables of all wait for the next layer: 64 MiB for 131,072 tokens of head_dim 128 in 16
    bits.

    Args:
        layers: of the model.
        make: what makes the tables of ``tokens`` positions from ``start`` on, in the type of a
            hidden state.
    """

    def __init__(self, layers: int, make: Callable[[Start, int, Tensor], Tables]) -> None:
        self._last, self._make = layers - 1, make
        self._tables: dict[tuple[Start, int], Tables] = {}

    def __call__(self, layer: int, start: Start, hidden: Tensor) -> Tables:
        """The tables of ``hidden [batch, tokens, hidden]`` at ``layer``, first token at ``start``.

        A ``start`` on the device is never looked at: it stands for itself, and may be another
        position whenever the first layer comes round.
        """
        tokens = hidden.shape[1]
        key = (start, tokens)
        if layer == 0 and isinstance(start, int) and start == 0:
            self._tables.clear()  # of a prompt that broke off
        if layer == 0 or key not in self._tables:
            self._tables[key] = self._make(start, tokens, hidden)
        return self._tables.pop(key) if layer == self._last else self._tables[key]
