"""Files are written whole or not at all, wherever that fails."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvevict import files
from kvevict.errors import InputError

SRC = Path(__file__).parents[1] / "src"
OLD, NEW = "old\n", "new\n" * 50_000


def written_on_a_full_disk(path: Path) -> str:
    """What ``files.write`` says, in a process that may not write more than 1,000 bytes."""
    code = (
        f"from kvevict import files; files.write(files.Path({str(path)!r}), {NEW[:4]!r} * 50_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SRC,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
    )
    return done.stderr.splitlines()[-1]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    for content in (OLD, NEW, b"\xff"):
        assert files.write(path, content) == path
    assert path.read_bytes() == b"\xff"
    assert os.listdir(tmp_path) == ["file"]


def test_where_the_disk_is_full_the_old_file_stays_and_nothing_else(tmp_path):
    path = files.write(tmp_path / "file", OLD)
    error = written_on_a_full_disk(path)
    assert error == f"kvevict.errors.InputError: cannot write {path}: File too large"
    assert path.read_text() == OLD
    assert os.listdir(tmp_path) == ["file"]


def test_an_exception_of_the_block_leaves_the_old_file(tmp_path):
    path = files.write(tmp_path / "file", OLD)
    with pytest.raises(ZeroDivisionError), files.replacing(path) as new:
        new.write_text(NEW)
        raise ZeroDivisionError
    assert path.read_text() == OLD
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file/below", "Not a directory"),
        ("nowhere/file", "No such file or directory"),
        ("", "Is a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path, place, why):
    (tmp_path / "file").touch()
    path = tmp_path / place
    with pytest.raises(InputError) as error:
        files.write(path, NEW)
    assert str(error.value) == f"cannot write {path}: {why}"
    with pytest.raises(InputError, match=f"cannot write {tmp_path / 'file'}"):
        files.make_directory(tmp_path / "file" / "below")


def test_a_link_keeps_pointing_where_it_did(tmp_path):
    target = files.write(tmp_path / "target", OLD)
    link = tmp_path / "link"
    link.symlink_to(target)
    files.write(link, NEW)
    assert link.is_symlink() and target.read_text() == NEW


def test_a_pipe_is_written_itself(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    files.write(pipe, NEW)
    reader.join(30)
    assert read == [NEW]
    assert pipe.is_fifo()


def test_what_utf_8_lacks_is_written_so_that_json_reads_it(tmp_path):
    name = "a\udcff∞"
    files.write(tmp_path / "file", json.dumps(name, ensure_ascii=False))
    assert json.loads((tmp_path / "file").read_text("utf-8")) == name


def test_paths_of_users_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expand("~/a b/") == tmp_path / "a b"
    assert files.expand("x/~") == Path("x/~")
    with pytest.raises(InputError, match="a path is empty"):
        files.expand("")
    with pytest.raises(InputError, match=r"~nobody\.here/x: there is no home directory"):
        files.expand("~nobody.here/x")
