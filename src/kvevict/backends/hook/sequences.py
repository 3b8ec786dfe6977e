"""What takes the place of a model's layers within ``evict``, for both frameworks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock

from ...engine import Batch, Decoder, Session
from ...engine.prefilling import prefill_hidden
from ...engine.session import check_positions
from ...errors import InputError
from ...methods import Policy
from ...tensors import Tensor, namespace
from .padding import count_tokens, first_positions, tokens_of


class Sequences:
    """Sessions as their caller counts them, row by row: what ``past_key_values`` stands for.

    Attributes:
        sessions: what holds the caches.
        mask: which places hold tokens and which padding, bool ``[rows, places]``.
        ahead: by how much the caller's positions are ahead of each session's. RoPE sees their
            differences alone.
    """

    def __init__(self, sessions: list[Session], mask: Tensor, ahead: list[int]) -> None:
        self.sessions, self.mask, self.ahead = sessions, mask, ahead
        self._batch, self._lock = Batch(sessions), Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this context no other call goes on with the sequences."""
        if not self._lock.acquire(blocking=False):
            raise InputError("two calls at a time go on with one past_key_values")
        try:
            yield
        finally:
            self._lock.release()

    def extend_hidden(self, hidden: Tensor, counts: list[int]) -> Tensor:
        """Take in the last ``counts`` of each row's places; the last layer's output.

        Args:
            hidden: ``[rows, new, hidden]``.
        """
        new = hidden.shape[1]
        if new == 1 and len(counts) > 1:
            return self._batch.extend_hidden(hidden)
        outs = [
            _pad(session.extend_hidden(hidden[row : row + 1, new - tokens :]), new)
            for row, (session, tokens) in enumerate(zip(self.sessions, counts))
        ]
        return _join(outs)


class Hook:
    """Prompts prefilled and evicted, tokens taken in.

    Args:
        decoder: of the model.
        policy: what each prompt is evicted by.
        example: the number of the first prompt.
        added: floats in an attention mask by query are added to the scores.

    Attributes:
        sessions: those of the last call with prompts, a row each.
    """

    def __init__(self, decoder: Decoder, policy: Policy, example: int, added: bool) -> None:
        self.decoder, self.policy, self.added = decoder, policy, added
        self.sessions: list[Session] = []
        self._examples = count(example)

    def __call__(
        self, given: Tensor, past: Sequences | None, mask: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Sequences]:
        """A forward pass of the model.

        Args:
            given: ids ``[rows, new]`` or embeddings ``[rows, new, hidden]``, padded on the left.
            past: the sequences that go on, which are changed; None where prompts begin.
            mask: the caller's, see :func:`~kvevict.backends.hook.padding.tokens_of`; None without
                padding.
            positions: the caller's, ``[rows, new]``; None for the numbers of the places.

        Returns:
            The last layer's output ``[rows, new, hidden]``, before the norm, 0 for padding, and
            the sequences.

        Raises:
            InputError: the model would compute something else than eviction does.
        """
        if past is None:
            return self._begin(given, mask, positions)
        with past.held():
            return self._go_on(given, past, mask, positions), past

    def _begin(
        self, given: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Sequences]:
        places = given.shape[1]
        mask = self._tokens(mask, given, places)
        counts = count_tokens(mask)
        ahead = first_positions(positions, mask, counts, places)
        if not all(counts) or not counts:
            raise InputError("the prompt has no tokens")
        check_positions(self.decoder, max(counts))  # a refused prompt takes no number
        sessions: list[Session] = []
        outs: list[Tensor] = []
        for row, again in enumerate(_repeats(given, mask)):
            if again:  # as generate does for num_return_sequences: one prompt, one cache
                sessions.append(sessions[-1].fork())
                outs.append(outs[-1])
                continue
            # The embeddings have no name here, so that they go when the first layer is done.
            (session,), hidden = prefill_hidden(
                self.decoder,
                self._embed(given[row : row + 1, places - counts[row] :]),
                [self.policy],
                next(self._examples),
            )
            sessions.append(session)
            outs.append(_pad(hidden, places))
        self.sessions[:] = sessions
        return _join(outs), Sequences(sessions, mask, ahead)

    def _go_on(
        self, given: Tensor, past: Sequences, mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        (rows, before), new = past.mask.shape, given.shape[1]
        if len(given) != rows:
            raise InputError(
                f"past_key_values is of {rows} rows, and the tokens are of {len(given)}"
            )
        mask = self._tokens(mask, given, before + new)
        if bool((mask[:, :before] != past.mask).any()):
            raise InputError("attention_mask has its padding elsewhere than past_key_values")
        counts = count_tokens(mask[:, before:])
        first = first_positions(positions, mask[:, before:], counts, before + new)
        seen = [session.cache.seen + ahead for session, ahead in zip(past.sessions, past.ahead)]
        if not all(counts) or first != seen:
            raise InputError(
                "the tokens do not go on where past_key_values ends: where there is padding, "
                "position_ids have to count the tokens alone"
            )
        for session, tokens in zip(past.sessions, counts):
            check_positions(self.decoder, session.cache.seen + tokens)
        hidden = past.extend_hidden(self._embed(given), counts)
        past.mask = mask
        return hidden

    def _tokens(self, mask: Tensor | None, given: Tensor, places: int) -> Tensor:
        rows, new = given.shape[:2]
        if mask is None:
            ns = namespace(given)
            return ns.ones((rows, places), dtype=ns.bool, device=given.device)
        return tokens_of(mask, rows, new, places, self.added)

    def _embed(self, given: Tensor) -> Tensor:
        return given.detach() if len(given.shape) == 3 else self.decoder.embed(given)


def _repeats(given: Tensor, mask: Tensor) -> list[bool]:
    """Whether each row has the tokens of the one before, among ``[rows, places]`` or embeddings."""
    same = given[1:] == given[:-1]
    same = same.all(dim=-1) if len(same.shape) == 3 else same
    same = (same | ~mask[1:]) & (mask[1:] == mask[:-1])
    return [False, *same.all(dim=-1).tolist()]


def _pad(hidden: Tensor, places: int) -> Tensor:
    """``[1, tokens, hidden]`` as ``[1, places, hidden]``, zeros on the left."""
    rows, tokens, width = hidden.shape
    if tokens == places:
        return hidden
    return namespace(hidden).cat([hidden.new_zeros((rows, places - tokens, width)), hidden], dim=1)


def _join(outs: list[Tensor]) -> Tensor:
    return outs[0] if len(outs) == 1 else namespace(outs[0]).cat(outs, dim=0)
