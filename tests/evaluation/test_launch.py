"""Examples are shared out completely, once each."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from evaluation.launch import Processes


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
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert (Processes().rank, Processes().world) == (4, 5)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "2")
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "3")
    assert (Processes().rank, Processes().world) == (2, 3)


def test_one_process_waits_for_nobody():
    (alone,) = processes(1)
    alone.begin()
    alone.end()
