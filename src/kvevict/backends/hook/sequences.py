"""What takes the place of a model's layers within ``evict``, for both frameworks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

from ...engine.prefilling import prefill_hidden
from ...engine.session import Decoder, Session, check_positions
from ...errors import InputError
from ...methods import Policy
from ...tensors import Tensor, namespace
from .padding import count_tokens, first_positions, tokens_of


@dataclass
class Sequence:
    """A session as its caller counts it: what ``past_key_values`` stands for.

    Attributes:
        session: what holds the cache.
        mask: which places hold tokens and which padding, bool ``[1, places]``.
        ahead: by how much the caller's positions are ahead of the session's. RoPE sees their
            differences alone.
    """

    session: Session
    mask: Tensor
    ahead: int
    _lock: Any = field(default_factory=Lock, repr=False)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this context no other call goes on with the sequence."""
        if not self._lock.acquire(blocking=False):
            raise InputError("two calls at a time go on with one past_key_values")
        try:
            yield
        finally:
            self._lock.release()


class Hook:
    """Prompts prefilled and evicted, tokens taken in.

    Args:
        decoder: of the model.
        policy: what each prompt is evicted by.
        example: the number of the first prompt.
        added: floats in an attention mask by query are added to the scores.

    Attributes:
        sessions: that of the last prompt alone.
    """

    def __init__(self, decoder: Decoder, policy: Policy, example: int, added: bool) -> None:
        self.decoder, self.policy, self.added = decoder, policy, added
        self.sessions: list[Session] = []
        self._examples = count(example)

    def __call__(
        self, given: Tensor, past: Sequence | None, mask: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Sequence]:
        """A forward pass of the model.

        Args:
            given: ids ``[1, new]`` or embeddings ``[1, new, hidden]``, padded on the left.
            past: the sequence that goes on, which is changed; None where a prompt begins.
            mask: the caller's, see :func:`~kvevict.backends.padding.tokens_of`; None without
                padding.
            positions: the caller's, ``[1, new]``; None for the numbers of the places.

        Returns:
            The last layer's output ``[1, new, hidden]``, before the norm, and the sequence.

        Raises:
            InputError: the model would compute something else than eviction does.
        """
        if len(given) != 1:
            raise InputError(f"eviction takes one prompt at a time, not {len(given)}")
        if past is None:
            return self._begin(given, mask, positions)
        with past.held():
            return self._go_on(given, past, mask, positions), past

    def _begin(
        self, given: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Sequence]:
        places = given.shape[1]
        mask = self._tokens(mask, given, places)
        (tokens,) = counts = count_tokens(mask)
        (first,) = first_positions(positions, mask, counts, places)
        if not tokens:
            raise InputError("the prompt has no tokens")
        check_positions(self.decoder, tokens)  # a refused prompt takes no number
        example = next(self._examples)
        # The embeddings have no name here, so that they go when the first layer is done.
        sessions, hidden = prefill_hidden(
            self.decoder, self._embed(given[:, places - tokens :]), [self.policy], example
        )
        self.sessions[:] = sessions
        return _pad(hidden, places), Sequence(sessions[0], mask, first)

    def _go_on(
        self, given: Tensor, past: Sequence, mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        before, new = past.mask.shape[1], given.shape[1]
        mask = self._tokens(mask, given, before + new)
        if bool((mask[:, :before] != past.mask).any()):
            raise InputError("attention_mask has its padding elsewhere than past_key_values")
        (tokens,) = counts = count_tokens(mask[:, before:])
        (first,) = first_positions(positions, mask[:, before:], counts, before + new)
        if not tokens or first != past.session.cache.seen + past.ahead:
            raise InputError(
                "the tokens do not go on where past_key_values ends: where there is padding, "
                "position_ids have to count the tokens alone"
            )
        hidden = past.session.extend_hidden(self._embed(given[:, new - tokens :]))
        past.mask = mask
        return _pad(hidden, new)

    def _tokens(self, mask: Tensor | None, given: Tensor, places: int) -> Tensor:
        rows, new = given.shape[:2]
        if mask is None:
            ns = namespace(given)
            return ns.ones((rows, places), dtype=ns.bool, device=given.device)
        return tokens_of(mask, rows, new, places, self.added)

    def _embed(self, given: Tensor) -> Tensor:
        return given.detach() if len(given.shape) == 3 else self.decoder.embed(given)


def _pad(hidden: Tensor, places: int) -> Tensor:
    """``[1, tokens, hidden]`` as ``[1, places, hidden]``, zeros on the left."""
    rows, tokens, width = hidden.shape
    if tokens == places:
        return hidden
    return namespace(hidden).cat([hidden.new_zeros((rows, places - tokens, width)), hidden], dim=1)
