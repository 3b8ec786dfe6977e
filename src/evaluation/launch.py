"""The processes that a launcher starts, and how they share examples.

The launcher is ``paddle.distributed.launch`` or PyTorch's ``torchrun``, whatever the framework of
the model: all that is asked of it is who we are and where to meet.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from kvevict.environment import integer
from kvevict.errors import InputError
from kvevict.waiting import waiting

ANSWER = timedelta(minutes=5)  # within which a store that is there answers
LOOK_SECONDS = 0.2  # between two looks at what is waited for
MOST = 2**16 - 1  # processes, or the number of a port
# What a launcher sets: rank, number of processes, and where the store is.
PADDLE = ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "PADDLE_MASTER")
PYTORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """This process among those of one launch.

    They meet twice, through the store of the launch and not by a collective: a process may be
    hours behind another, and Paddle's gloo barrier gives up after 30 seconds.

    Attributes:
        rank: this process's number.
        world: how many there are; 1 without a launcher.

    Raises:
        InputError: the environment names a rank or a number of processes as launchers do, but not
            all that a launch needs; or torchrun started it without a PyTorch to meet by.
    """

    def __init__(self) -> None:
        self._paddle = bool(os.environ.get("PADDLE_TRAINER_ID"))
        names = PADDLE if self._paddle else PYTORCH
        rank, world, *_ = names
        self.rank = integer(rank, 0, most=MOST)
        self.world = integer(world, 1, least=1, most=MOST)
        self._store: Any = None
        self._shared = 0
        if (self.rank, self.world) == (0, 1):
            return
        missing = [name for name in names if not os.environ.get(name)]
        if missing or self.rank >= self.world:
            problem = f"there is no {', '.join(missing)}" if missing else f"{rank} is {self.rank}"
            of_launch = f"{world} is {self.world}" if os.environ.get(world) else f"{rank} is set"
            raise InputError(
                f"{of_launch}, as for one process of several, but {problem}: start with "
                f"paddle.distributed.launch or torchrun, or for one process unset {rank} and "
                f"{world}"
            )
        if _store_of_torchrun() and not find_spec("torch"):
            raise InputError(
                f"torchrun's processes meet at a store of PyTorch's, which {sys.executable} lacks: "
                "start with paddle.distributed.launch"
            )
        self._host, self._port = self._address()

    def begin(self) -> None:
        """Wait until rank 0 has come this far."""
        if self.world == 1:
            return
        with waiting(f"process 0 of {self.world} at {self._host}, port {self._port}"):
            self._store = self._connect()
            if self.rank == 0:
                self._add("begin", 1)
            else:
                _until(lambda: self._add("begin", 0))

    def end(self) -> None:
        """Rank 0 waits until all have come this far; the others go on."""
        if self.rank > 0:
            self._add("end", 1)
        elif self.world > 1:
            with waiting(f"the other processes of {self.world} to predict their share"):
                _until(lambda: self._add("end", 0) == self.world - 1)

    def share(self, examples: list[Any], neighbours: bool) -> list[Any]:
        """This process's part: every ``world``-th, or ``neighbours``, which stay together.

        Who had the last example of one call comes last in the next: of many tasks of few examples
        each, all processes have some.
        """
        count, turn = len(examples), (self.rank - self._shared) % self.world
        self._shared += count
        if neighbours:
            return examples[turn * count // self.world : (turn + 1) * count // self.world]
        return examples[turn :: self.world]

    def _address(self) -> tuple[str, int]:
        """Where the store is."""
        if not self._paddle:
            return os.environ["MASTER_ADDR"], integer("MASTER_PORT", 0, least=1, most=MOST)
        host, _, port = os.environ["PADDLE_MASTER"].rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"PADDLE_MASTER is {os.environ['PADDLE_MASTER']!r}, not host:port")
        return host, int(port)

    def _connect(self) -> Any:
        """The store, which rank 0 or torchrun itself serves."""
        of_torchrun = _store_of_torchrun()
        serves = self.rank == 0 and not of_torchrun
        if not serves:
            _until(self._answers)  # clients of the frameworks complain, or wait without end
        if find_spec("paddle") and not of_torchrun:
            from paddle.base.core import TCPStore

            seconds, everybody = int(ANSWER.total_seconds()), 0  # 0: waits for nobody to join
            return TCPStore(self._host, self._port, serves, everybody, seconds)
        from torch.distributed import TCPStore

        return TCPStore(
            self._host, self._port, is_master=serves, timeout=ANSWER, wait_for_workers=False
        )

    def _answers(self) -> bool:
        try:
            socket.create_connection((self._host, self._port), timeout=2).close()
        except OSError:
            return False
        return True

    def _add(self, event: str, count: int) -> int:
        """Count processes that have come to ``event``; how many there are by now."""
        # torchrun may start all processes anew, on the store of those that failed.
        key = f"kvevict/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{event}"
        try:
            return self._store.add(key, count)
        except (RuntimeError, ValueError):  # PyTorch's and Paddle's for a broken connection
            raise InputError(
                f"process {self.rank} of {self.world} has lost the others: nothing answers at "
                f"{self._host}, port {self._port}"
            ) from None


def _store_of_torchrun() -> bool:
    """Whether the agent that started this process serves the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _until(seen: Callable[[], Any]) -> None:
    while not seen():
        time.sleep(LOOK_SECONDS)
