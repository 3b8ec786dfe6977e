"""The processes that ``paddle.distributed.launch`` starts, and how they share examples."""

from __future__ import annotations

import os


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without a launcher."""
    rank = int(os.environ.get("PADDLE_TRAINER_ID", 0))
    return rank, int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def start(world: int) -> None:
    """Join the other processes."""
    if world > 1:
        import paddle.distributed

        paddle.distributed.init_parallel_env()


def barrier(world: int) -> None:
    """Wait until every process has come this far."""
    if world > 1:
        import paddle.distributed

        paddle.distributed.barrier()
