"""The processes that a launcher starts, and how they share examples.

The launcher is ``paddle.distributed.launch`` or PyTorch's ``torchrun``, whatever the framework of
the model: all that is asked of it is who we are and where to meet.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

WAIT = timedelta(days=7)


class Processes:
    """This process among those of one launch.

    They meet twice, through the store of the launch and not by a collective: a process may be
    hours behind another, and Paddle's gloo barrier gives up after 30 seconds.

    Attributes:
        rank: this process's number.
        world: how many there are; 1 without a launcher.
    """

    def __init__(self) -> None:
        self._paddle = "PADDLE_TRAINER_ID" in os.environ
        rank, world = ("RANK", "WORLD_SIZE")
        if self._paddle:
            rank, world = ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM")
        self.rank = int(os.environ.get(rank, 0))
        self.world = int(os.environ.get(world, 1))
        self._store: Any = None

    def begin(self) -> None:
        """Wait until rank 0 has come this far."""
        if self.world == 1:
            return
        self._store = self._connect()
        if self.rank == 0:
            self._store.set(self._key("begin"), b"1")
        else:
            self._store.get(self._key("begin"))

    def end(self) -> None:
        """Rank 0 waits until all have come this far; the others go on."""
        if self.rank > 0:
            self._store.set(self._key(f"end{self.rank}"), b"1")
            return
        for rank in range(1, self.world):
            self._store.get(self._key(f"end{rank}"))

    def share(self, examples: list[Any], neighbours: bool) -> list[Any]:
        """This process's part: every ``world``-th, or ``neighbours``, which stay together."""
        if neighbours:
            count = len(examples)
            return examples[self.rank * count // self.world : (self.rank + 1) * count // self.world]
        return examples[self.rank :: self.world]

    def _connect(self) -> Any:
        """A store in which ``get`` waits until the key is there."""
        if self._paddle:
            from paddle.base.core import TCPStore

            host, _, port = os.environ["PADDLE_MASTER"].rpartition(":")
            seconds = int(WAIT.total_seconds())
            return TCPStore(host, int(port), self.rank == 0, self.world, seconds)
        from torch.distributed import rendezvous

        # Knows whether torchrun serves the store itself or leaves that to rank 0.
        store, _, _ = next(rendezvous("env://", timeout=WAIT))
        return store

    def _key(self, event: str) -> str:
        # torchrun may start all processes anew, on the store of those that failed.
        return f"kvevict/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{event}"
