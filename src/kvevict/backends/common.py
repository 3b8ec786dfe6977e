"""What the backends share: rotary tables of one pass, and eviction inside ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..engine.prefilling import prefill_hidden
from ..engine.session import Decoder, Session
from ..errors import InputError
from ..methods.base import Policy
from ..tensors import Tensor

Tables = tuple  # cosines and sines, [..., tokens, head_dim]


class Rotations:
    """Rotary tables of the tokens that pass through a model, made once for all its layers.

    The first layer has them made and the last lets them go: nothing is held while tokens are
    decoded, or between prompts. The chunks of a long prompt go through one layer after the other,
    so the tables of all wait for the next layer: 64 MiB for 131,072 tokens of head_dim 128 in 16
    bits.

    Args:
        layers: of the model.
        make: what makes the tables of ``tokens`` positions from ``start`` on, in the type of a
            hidden state.
    """

    def __init__(self, layers: int, make: Callable[[int | Tensor, int, Tensor], Tables]) -> None:
        self._last, self._make = layers - 1, make
        self._tables: dict[tuple[int | Tensor, int], Tables] = {}

    def __call__(self, layer: int, start: int | Tensor, hidden: Tensor) -> Tables:
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


class Prompts:
    """What takes the place of a model's layers in ``evict``: prompts prefilled, tokens taken in.

    Attributes:
        sessions: that of the last prompt alone.
    """

    def __init__(self, decoder: Decoder, policy: Policy, example: int) -> None:
        self.decoder, self.policy, self.example = decoder, policy, example
        self.sessions: list[Session] = []

    def take_in(
        self, given: Tensor, session: Session | None, mask: Tensor | None, **others: Any
    ) -> tuple[Tensor, Session]:
        """A forward pass of the model.

        Args:
            given: ids ``[1, tokens]`` or embeddings ``[1, tokens, hidden]``.
            session: the sequence that goes on; None where a prompt begins.
            mask: of a prompt.
            others: what else the model's ``forward`` was called with.

        Returns:
            The last layer's output ``[1, tokens, hidden]``, before the norm, and the session.
        """
        if len(given) != 1:
            raise InputError(
                f"eviction takes one prompt at a time, without beams, not {len(given)}"
            )
        if others.get("output_attentions") or others.get("output_hidden_states"):
            raise InputError("eviction keeps no attention weights and no hidden states to return")
        if session is not None:
            return session.extend_hidden(self._embed(given)), session
        if mask is not None and _hides_a_token(mask):
            raise InputError("eviction takes a prompt without padding")
        self.sessions.clear()
        # The embeddings have no name here, so that they go when the first layer is done.
        new, hidden = prefill_hidden(self.decoder, self._embed(given), [self.policy], self.example)
        self.sessions += new
        self.example += 1
        return hidden, self.sessions[0]

    def _embed(self, given: Tensor) -> Tensor:
        return given.detach() if given.ndim == 3 else self.decoder.embed(given)


@contextmanager
def forward_replaced(module: Any, forward: Callable) -> Iterator[None]:
    """Within this context ``module(...)`` calls ``forward``; contexts nest."""
    attributes = vars(module)  # past PaddleNLP's own patching of assigned forwards
    outer = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        if outer is not None:
            attributes["forward"] = outer


def _hides_a_token(mask: Tensor) -> bool:
    """Whether the last row of ``[1, N]`` or ``[1, 1, rows, N]`` leaves out any of the prompt.

    Floats of the second kind are added to the scores; all else is one where a token is seen.
    """
    last = mask[..., -1:, :] if mask.ndim == 4 else mask
    added = last if mask.ndim == 4 and mask.is_floating_point() else last.float() - 1
    return bool((added < 0).any())
