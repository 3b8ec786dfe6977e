"""What positions lend their neighbours: pooling, by any share that falls with the distance."""

from __future__ import annotations

from ..tensors import Tensor
from .runtime import tl, triton

POSITIONS = 1024  # a program's


def neighbours(
    scores: Tensor,
    back: int,
    ahead: int,
    since: int,
    until: int,
    tail: float,
    plateau: float,
    highest: bool,
) -> Tensor:
    """As :func:`kvevict.scoring.neighbours`, of contiguous float32 ``scores [rows, n]``."""
    rows, n = scores.shape
    out = scores.new_empty([rows, n])
    _lent[(triton.cdiv(n, POSITIONS), rows)](
        scores, out, n, back, ahead, since, until, float(tail), float(plateau),
        HIGHEST=highest, POSITIONS=POSITIONS, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["back", "ahead", "since", "until", "tail", "plateau"])
def _lent(scores, out, n, back, ahead, since, until, tail, plateau,
          HIGHEST: tl.constexpr, POSITIONS: tl.constexpr):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * n
    to = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    mixed = tl.zeros([POSITIONS], tl.float32)
    for distance in range(-ahead, back + 1):
        lender = to + distance
        lends = (lender >= since) & (lender < until)
        part = tl.load(scores + row + lender, mask=lends, other=0.0)
        part *= tl.exp2(-tail * tl.log2(1.0 + tl.abs(distance).to(tl.float32) / plateau))
        mixed = tl.maximum(mixed, part) if HIGHEST else mixed + part
    tl.store(out + row + to, tl.where(to < until, mixed, 0.0), mask=to < n)
