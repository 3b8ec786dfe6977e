"""Examples are shared out completely, once each."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.launch import Processes
from kvevict.errors import InputError


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
