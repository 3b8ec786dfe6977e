"""Greedy answers of one sequence alone, which those of a batch are held to."""

from __future__ import annotations

NEAR = 1e-3  # logits nearer than this may change places when sums are rounded otherwise


def alone(session, count: int) -> tuple[list[int], list[float]]:
    """The tokens that follow, and by how much each was ahead of the next best."""
    ids, gaps = [], []
    while len(ids) < count:
        best = session.logits.topk(2, dim=-1)
        ids.append(int(best[1][0]))
        gaps.append(float(best[0][0] - best[0][1]))
        session.extend(ids[-1:])
    return ids, gaps


def assert_same_tokens(got: list[int], expected: list[int], gaps: list[float]) -> None:
    """Equal, up to the first step whose two best are nearly tied."""
    for token, other, gap in zip(got, expected, gaps):
        if gap < NEAR:
            return
        assert token == other
    assert len(got) == len(expected)
