"""Attention masks and positions, read: where in a rectangle of places a batch's tokens lie."""

from __future__ import annotations

from ...errors import InputError
from ...tensors import Tensor, namespace

BLOCK = 1024  # query rows of a mask that are looked at together
HIDDEN = -1e4  # the least that hides a key when it is added to a score, as PaddleNLP does


def tokens_of(mask: Tensor, rows: int, new: int, places: int, added: bool) -> Tensor:
    """Which places hold tokens and which padding.

    Args:
        mask: ``[rows, places]``, 0 where padding is; or by query, ``[rows, new, places]`` or
            ``[rows, 1, new, places]``. One row may stand for all.
        new: places that the model is called with, the last ones.
        places: all of them, those in the cache included.
        added: floats of a mask by query are added to the scores; all else is 0 for a hidden key.

    Returns:
        bool ``[rows, places]``.

    Raises:
        InputError: another shape, or queries that see otherwise than causally among tokens.
    """
    shape = list(mask.shape) if hasattr(mask, "shape") else type(mask).__name__
    if not isinstance(shape, list) or shape[0] not in (1, rows) or shape[-1] != places:
        raise InputError(f"attention_mask is {shape}, which is not [{rows}, {places}]")
    if len(shape) == 2:
        return (mask != 0).expand(rows, places)
    if len(shape) == 4 and shape[1] == 1:
        mask = mask.squeeze(1)
    if len(mask.shape) != 3 or mask.shape[1] != new:
        raise InputError(f"attention_mask is {shape}, which is not [{rows}, 1, {new}, {places}]")
    last = _seen(mask[:, -1], added)
    for first in range(0, new, BLOCK):
        seen = _seen(mask[:, first : first + BLOCK], added)
        if not _causal(seen, last, places - new + first):
            raise InputError(
                "attention_mask hides some tokens from later ones, or shows them to earlier ones: "
                "eviction takes causal attention alone"
            )
    return last.expand(rows, places)


def count_tokens(mask: Tensor) -> list[int]:
    """How many of the places of each row of bool ``[rows, places]`` hold tokens.

    Raises:
        InputError: a row is not padded on the left.
    """
    mask = mask.int()
    if bool((mask[:, :-1] > mask[:, 1:]).any()):
        raise InputError("attention_mask hides tokens after others: padding goes on the left")
    return mask.sum(dim=-1).tolist()


def first_positions(
    positions: Tensor | None, mask: Tensor, counts: list[int], places: int
) -> list[int]:
    """The position of each row's first new token, as its caller counts.

    Args:
        positions: ``[rows, new]``, of padding anything; one row may stand for all. None for the
            numbers of the places.
        mask: which of the new places hold tokens, bool ``[rows, new]``.
        counts: how many of them do, by row.
        places: all of them, those in the cache included.

    Raises:
        InputError: another shape, or positions that do not go up by one from token to token.
    """
    rows, new = mask.shape
    if positions is None:
        return [places - count for count in counts]
    if list(positions.shape) not in ([1, new], [rows, new]):
        raise InputError(f"position_ids is {list(positions.shape)}, which is not [{rows}, {new}]")
    back = namespace(positions).arange(new - 1, -1, -1, device=positions.device)
    last = positions[:, -1:]
    if bool(((positions + back != last) & mask).any()):
        raise InputError(
            "position_ids do not go up by one from token to token: eviction takes no others"
        )
    last = last.expand(rows, 1)[:, 0].tolist()
    return [end + 1 - count for end, count in zip(last, counts)]


def _seen(mask: Tensor, added: bool) -> Tensor:
    """Which keys a mask shows: bool, of the mask's shape."""
    if not (added and mask.is_floating_point()):
        return mask != 0
    seen = mask == 0
    if bool((~seen & (mask > HIDDEN)).any()):
        raise InputError("attention_mask adds a bias to the scores, which eviction does not take")
    return seen


def _causal(seen: Tensor, last: Tensor, first: int) -> bool:
    """Whether the queries at places from ``first`` on see the tokens up to their own, and no more.

    Args:
        seen: bool ``[rows, queries, places]``; what padding sees does not count.
        last: bool ``[rows, places]``, what the last token sees.
    """
    queries, places = seen.shape[1:]
    place = namespace(seen).arange(places, device=seen.device)
    own = place[first : first + queries].unsqueeze(-1)
    padding = ~last[:, first : first + queries].unsqueeze(-1)
    return bool(((seen == (last.unsqueeze(1) & (place <= own))) | padding).all())
