"""Examples are shared out completely, once each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import launch
from evaluation.launch import Processes
from kvevict.errors import InputError

SRC = Path(__file__).parents[2] / "src"


def processes(world: int) -> list[Processes]:
    found = [Processes() for _ in range(world)]
    for rank, process in enumerate(found):
        process.rank, process.world = rank, world
    return found


@given(st.integers(1, 9), st.integers(0, 40), st.booleans())
def test_every_example_has_one_process_and_no_process_is_overloaded(world, count, neighbours):
    shares = [p.share([*range(count)], neighbours) for p in processes(world)]
    together = [*chain(*shares)]
    assert sorted(together) == [*range(count)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if neighbours:
        assert together == [*range(count)]


@given(st.integers(1, 9), st.lists(st.integers(0, 12), max_size=9))
def test_of_many_tasks_of_few_examples_all_have_some(world, counts):
    own = [[p.share([*range(count)], False) for count in counts] for p in processes(world)]
    for task, count in enumerate(counts):
        assert sorted(chain(*(shares[task] for shares in own))) == [*range(count)]
    totals = [sum(map(len, shares)) for shares in own]
    assert max(totals) - min(totals) <= 1


def test_the_launcher_says_who_we_are(monkeypatch):
    assert (Processes().rank, Processes().world) == (0, 1)
    torchrun = {"RANK": "4", "WORLD_SIZE": "5", "MASTER_ADDR": "there", "MASTER_PORT": "29500"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert (Processes().rank, Processes().world) == (4, 5)
    paddle = {"PADDLE_TRAINER_ID": "2", "PADDLE_TRAINERS_NUM": "3", "PADDLE_MASTER": "there:53001"}
    for name, value in paddle.items():
        monkeypatch.setenv(name, value)
    assert (Processes().rank, Processes().world) == (2, 3)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("RANK=0 WORLD_SIZE=2", "WORLD_SIZE is 2, as for one process of several, but there is no "
         "MASTER_ADDR, MASTER_PORT: start with paddle.distributed.launch or torchrun, or for one "
         "process unset RANK and WORLD_SIZE"),
        ("WORLD_SIZE=2", "WORLD_SIZE is 2, .* but there is no RANK, MASTER_ADDR, MASTER_PORT: "),
        ("RANK=3", "RANK is set, .* but there is no WORLD_SIZE, MASTER_ADDR, MASTER_PORT: "),
        ("RANK=2 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", "WORLD_SIZE is 2, .* but RANK is 2: "),
        ("RANK=-1 WORLD_SIZE=2", "RANK is '-1', where a whole number from 0 to "),
        ("RANK=0 WORLD_SIZE=two", "WORLD_SIZE is 'two', where a whole number from 1 to "),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE is '0', where "),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=http", "MASTER_PORT is 'http', where "),
        ("PADDLE_TRAINER_ID=0 PADDLE_TRAINERS_NUM=2", "but there is no PADDLE_MASTER: "),
        ("PADDLE_TRAINER_ID=0 PADDLE_TRAINERS_NUM=2 PADDLE_MASTER=a", "not host:port"),
    ],
)  # fmt: skip
def test_what_is_no_whole_launch_is_refused_by_name(monkeypatch, environment, message):
    for variable in environment.split():
        monkeypatch.setenv(*variable.split("="))
    with pytest.raises(InputError, match=message):
        Processes()


def test_a_store_of_torchrun_without_pytorch_is_refused(monkeypatch):
    """As where PyTorch's torchrun starts the Python that has Paddle."""
    names = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    for name, value in {**names, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "find_spec", {"torch": None}.__getitem__)
    with pytest.raises(
        InputError, match=r"a store of PyTorch's, which .* lacks: start with paddle"
    ):
        Processes()


@pytest.mark.parametrize(
    "environment", ["WORLD_SIZE=", "RANK=", "RANK=0", "WORLD_SIZE=1", "PADDLE_TRAINER_ID="]
)
def test_a_variable_that_says_nothing_of_others_leaves_the_process_alone(monkeypatch, environment):
    monkeypatch.setenv(*environment.split("="))
    alone = Processes()
    assert (alone.rank, alone.world) == (0, 1)
    alone.begin()
    alone.end()


def test_one_process_waits_for_nobody():
    (alone,) = processes(1)
    alone.begin()
    alone.end()


#: One process of a launch without a launcher, that takes some seconds between the meetings.
MEET = """
import sys, time
from functools import partial
from evaluation import launch
from kvevict.command import command
launch.waiting = partial(launch.waiting, seconds=0.5)

@command()
def main():
    processes = launch.Processes()
    processes.begin()
    print("begun", flush=True)
    time.sleep(float(sys.argv[1]))
    processes.end()

sys.exit(main())
"""


@pytest.fixture
def start():
    """Starts a process of two, that take some seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []

    def begin(rank: int, seconds: int) -> subprocess.Popen:
        launch = {"WORLD_SIZE": "2", "RANK": str(rank)}
        launch.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, PYTHONPATH=str(SRC))
        command = [sys.executable, "-c", MEET, str(seconds)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env={**os.environ, **launch}, **pipes))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_who_waits_says_for_what_and_goes_on_when_it_is_there(start):
    second = start(1, 3)
    note = second.stderr.readline()
    assert note.startswith("waiting for process 0 of 2 at 127.0.0.1, port ")
    first = start(0, 0)
    out, error = first.communicate(timeout=120)
    assert (first.returncode, out) == (0, "begun\n")
    assert "waiting for the other processes of 2 to predict their share\n" in error
    assert second.communicate(timeout=120)[0] == "begun\n" and second.returncode == 0


def test_a_process_that_was_left_alone_says_so(start):
    first, second = start(0, 120), start(1, 5)
    assert second.stdout.readline() == "begun\n"
    first.kill()
    _, error = second.communicate(timeout=120)
    assert second.returncode == 2
    assert error.splitlines()[-1].startswith("error: process 1 of 2 has lost the others: nothing ")


def test_an_endless_wait_can_be_interrupted(start):
    alone = start(1, 0)
    alone.stderr.readline()
    alone.send_signal(signal.SIGINT)
    _, error = alone.communicate(timeout=60)
    assert (alone.returncode, error) == (130, "\nstopped; no file is left half-written\n")
