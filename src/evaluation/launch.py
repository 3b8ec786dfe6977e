"""The processes that ``paddle.distributed.launch`` starts, and how they share examples."""

from __future__ import annotations

import os
from typing import Any

WAIT_SECONDS = 7 * 24 * 3600


class Processes:
    """This process among those of one launch.

    They meet twice, through the store of the launch and not by a collective: a process may be
    hours behind another, and Paddle's gloo barrier gives up after 30 seconds.

    Attributes:
        rank: this process's number.
        world: how many there are; 1 without a launcher.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", 0))
        self.world = int(os.environ.get("PADDLE_TRAINERS_NUM", 1))
        self._store: Any = None

    def begin(self) -> None:
        """Wait until rank 0 has come this far."""
        if self.world == 1:
            return
        from paddle.base.core import TCPStore

        host, _, port = os.environ["PADDLE_MASTER"].rpartition(":")
        self._store = TCPStore(host, int(port), self.rank == 0, self.world, WAIT_SECONDS)
        if self.rank == 0:
            self._store.set("begin", b"1")
        else:
            self._store.wait("begin")

    def end(self) -> None:
        """Rank 0 waits until all have come this far; the others go on."""
        if self.rank > 0:
            self._store.set(f"end{self.rank}", b"1")
            return
        for rank in range(1, self.world):
            self._store.wait(f"end{rank}")

    def share(self, examples: list[Any], neighbours: bool) -> list[Any]:
        """This process's part: every ``world``-th, or ``neighbours``, which stay together."""
        if neighbours:
            count = len(examples)
            return examples[self.rank * count // self.world : (self.rank + 1) * count // self.world]
        return examples[self.rank :: self.world]
