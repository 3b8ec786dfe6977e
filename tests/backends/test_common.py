"""What both backends share, without a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvevict import InputError, Policy, build, evict
from kvevict.backends.common import Rotations

SRC = Path(__file__).parents[2] / "src"


class Counted(Rotations):
    """Tables that say what they are of, and how often each was made."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers, self.make)
        self.made: list[tuple[int, int]] = []

    def make(self, start, tokens, like) -> tuple:
        position = start.position if isinstance(start, OnDevice) else start
        self.made.append((position, tokens))
        return position, tokens

    def run(self, layers, chunks) -> None:
        """The chunks, ``(start, tokens)``, through those layers; each gets its own tables."""
        for layer in layers:
            for start, tokens in chunks:
                got = self(layer, start, SimpleNamespace(shape=(1, tokens, 8)))
                assert got == (getattr(start, "position", start), tokens)


class OnDevice:
    """Stands for a position that may not be read, such as one on a GPU."""

    def __init__(self, position: int) -> None:
        self.position = position

    def __eq__(self, other) -> bool:
        raise AssertionError("the host would wait for the device")

    __hash__ = object.__hash__


@given(
    layers=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    chunk=st.integers(1, 12),
    decoded=st.integers(0, 5),
)
def test_tables_are_made_once_a_pass_and_not_kept(layers, lengths, chunk, decoded) -> None:
    rotations = Counted(layers)
    for n in lengths:
        chunks = [(start, min(chunk, n - start)) for start in range(0, n, chunk)]
        rotations.made.clear()
        rotations.run(range(layers), chunks)
        assert rotations.made == chunks
        assert not rotations._tables
        for token in range(n, n + decoded):
            rotations.run(range(layers), [(token, 1)])
            assert not rotations._tables
        assert len(rotations.made) == len(chunks) + decoded


def test_a_position_on_the_device_is_made_anew_for_each_pass() -> None:
    rotations, start = Counted(3), OnDevice(40)
    for position in (40, 41, 300):
        start.position = position
        rotations.run(range(3), [(start, 1)])
    assert rotations.made == [(40, 1), (41, 1), (300, 1)]


def test_a_pass_that_broke_off_leaves_nothing_to_the_next_prompt() -> None:
    rotations = Counted(3)
    rotations.run(range(2), [(0, 8), (8, 8), (16, 5)])
    assert len(rotations._tables) == 3
    rotations.run(range(3), [(0, 6)])
    assert not rotations._tables


def test_threads_do_not_take_each_others_tables() -> None:
    rotations = Counted(3)
    rotations.run([0], [(0, 6)])
    other = Thread(target=rotations.run, args=(range(3), [(0, 6)]))
    other.start()
    other.join()
    rotations.run([1, 2], [(0, 6)])
    assert rotations.made == [(0, 6)]


def test_a_layer_by_itself_has_its_tables() -> None:
    rotations = Counted(3)
    rotations.run([2, 1, 2], [(7, 1)])


@pytest.mark.parametrize("what", [object(), Policy, "smollm2-135m-instruct"])
def test_what_is_no_model_of_either_library(what) -> None:
    with pytest.raises(InputError, match=r"takes a model .* one of LlamaForCausalLM, "):
        evict(what, build("nacl"))


def test_a_class_of_that_name_from_elsewhere() -> None:
    class LlamaForCausalLM: ...

    with pytest.raises(InputError, match=r"not .*test_common\..*LlamaForCausalLM$"):
        evict(LlamaForCausalLM(), build("nacl"))


def test_kvevict_imports_no_framework() -> None:
    names = ("paddle", "paddlenlp", "torch", "transformers")
    code = f"import sys, kvevict; sys.exit(' '.join(set(sys.modules) & {set(names)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True)
    assert done.stderr.strip() == ""
