"""Entries in places that they keep, and new ones where others were: how a layer joins the best.

A layer's entries push out some of those held. Nothing that stays is moved: what comes in is written
where something went out, and a table tells where each entry, in order, is.
"""

from __future__ import annotations

import math

from ..tensors import Tensor
from .runtime import tl, triton
from .selection import positions

BLOCK, ROWS = 1024, 64


def reuse(mask: Tensor, rows: Tensor, slots: Tensor, staying: Tensor) -> Tensor:
    """Where those that are kept lie: see :func:`kvevict.ops.reuse`; nothing waits for a number.

    Args:
        mask: bool ``[held + new]``, what is kept.
        rows: int32 ``[kept]``, where it is set.
        slots: int32 ``[held]``, above 0.
        staying: ``[1]``, how many of those held are kept.

    Returns:
        int32 ``[kept]``.
    """
    held, kept = slots.shape[0], rows.shape[0]
    out = slots.new_empty([kept])
    gone = positions(~mask[:held], held)  # and zeros, behind as many as there are
    _reuse[(triton.cdiv(kept, BLOCK),)](rows, slots, gone, staying, out, held, kept, BLOCK=BLOCK)
    return out


def put(held: Tensor, new: Tensor, rows: Tensor, slots: Tensor, count: int) -> None:
    """``held[slots[i]] = new[rows[i] - count]`` for the rows from ``count`` on.

    Args:
        held, new: ``[entries, …]``, contiguous, of one type.
        rows, slots: int32 ``[kept]``.
    """
    kept, width = rows.shape[0], math.prod(new.shape[1:])
    _put[(triton.cdiv(kept, ROWS),)](
        held, new, rows, slots, kept, count, WIDTH=width, PADDED=triton.next_power_of_2(width),
        ROWS=ROWS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["held", "kept"])
def _reuse(rows, slots, gone, staying, out, held, kept, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < kept
    row = tl.load(rows + place, mask=inside, other=0)
    stays = row < held
    own = tl.load(slots + row, mask=inside & stays, other=0)
    # Newcomers take what was never used, and then the places of those that went.
    rank = place - tl.load(staying).to(tl.int32)
    spare = kept - held
    again = inside & ~stays & (rank >= spare)
    left = tl.load(gone + rank - spare, mask=again, other=0)
    taken = tl.load(slots + left, mask=again, other=0)
    slot = tl.where(stays, own, tl.where(rank < spare, held + rank, taken))
    tl.store(out + place, slot, mask=inside)


@triton.jit(do_not_specialize=["kept", "count"])
def _put(held, new, rows, slots, kept, count, WIDTH: tl.constexpr, PADDED: tl.constexpr,
         ROWS: tl.constexpr):  # fmt: skip
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + place, mask=place < kept, other=0) - count
    slot = tl.load(slots + place, mask=place < kept, other=0)
    column = tl.arange(0, PADDED)[None, :]
    inside = ((place < kept) & (row >= 0))[:, None] & (column < WIDTH)
    x = tl.load(new + row.to(tl.int64)[:, None] * WIDTH + column, mask=inside)
    tl.store(held + slot.to(tl.int64)[:, None] * WIDTH + column, x, mask=inside)
