"""The cache of models: each made once, by one process at a time, or one sentence why not."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvevict.errors import InputError
from kvevict.models.disk_cache import cache_dir, made_once, remove

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("KVEVICT_CACHE", str(path))
    return path


def fill(made: Path, work: Path) -> None:
    (made / "file").write_text("whole")


def fail(made: Path, work: Path) -> None:
    raise InputError("no luck")


def everything(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*"))


def test_it_is_made_once_and_nothing_else_stays(cache):
    assert made_once("model", fill, 0) == made_once("model", fail, 0) == cache / "model"
    assert everything(cache) == ["file", "model"]


def test_a_failure_leaves_nothing(cache):
    with pytest.raises(InputError, match="no luck"):
        made_once("model", fail, 0)
    assert everything(cache) == []


def test_files_of_an_attempt_are_there_for_the_next_and_go_then(cache):
    def begin(made: Path, work: Path) -> None:
        (made / "half").write_text("a")
        (work / "wheel").mkdir()
        (work / "partly").write_text("a")
        (work / "empty").touch()
        raise InputError("broke off")

    def finish(made: Path, work: Path) -> None:
        assert sorted(path.name for path in work.iterdir()) == ["made", "partly"]
        assert list(made.iterdir()) == []
        (work / "partly").rename(made / "file")

    with pytest.raises(InputError, match="broke off"):
        made_once("model", begin, 0)
    assert everything(cache) == [".model", "partly"]
    made_once("model", finish, 0)
    assert everything(cache) == ["file", "model"]


def test_one_that_is_outdated_is_replaced(cache):
    (cache / "model").mkdir(parents=True)
    (cache / "model" / "old").write_text("")

    def is_current(path: Path) -> bool:
        return (path / "file").exists()

    made_once("model", fill, 0, is_current)
    assert everything(cache) == ["file", "model"]


SLOWLY = """
import sys, time
from pathlib import Path
from kvevict.models.disk_cache import made_once

def make(made, work):
    with open(sys.argv[1], "a") as log:
        log.write("made ")
    Path(sys.argv[1] + ".begun").touch()
    time.sleep(1.5)

print(made_once("model", make, 0))
"""


def start(log: Path, **settings) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(log)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_of_several_processes_one_makes_it_and_the_others_wait(cache, tmp_path):
    log = tmp_path / "log"
    processes = [start(log) for _ in range(3)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {out for out, _ in ends} == {f"{cache / 'model'}\n"}
    assert log.read_text() == "made "
    waited = [error for _, error in ends if error]
    assert set(waited) <= {"waiting for another process that makes model\n"}
    assert everything(cache) == ["model"]


def test_what_another_process_is_making_is_not_removed(cache, tmp_path):
    process = start(tmp_path / "log")
    until((tmp_path / "log.begun").exists)
    with pytest.raises(InputError, match="another process is making model"):
        remove("model")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (cache / "model").is_dir()


def test_a_process_that_is_killed_blocks_nobody(cache, tmp_path):
    process = start(tmp_path / "log")
    until((tmp_path / "log.begun").exists)
    process.kill()
    process.communicate()
    made_once("model", fill, 0)
    assert everything(cache) == ["file", "model"]


def test_a_file_system_without_locks_will_do(cache, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    made_once("model", fill, 0)
    assert everything(cache) == ["file", "model"]


def test_removal_frees_what_is_finished_and_what_is_not(cache):
    made_once("model-1", fill, 0)
    made_once("model-2", fill, 0)
    made_once("other", fill, 0)
    (cache / ".model-3").mkdir()
    (cache / ".model-3" / "part").write_bytes(bytes(100))
    assert remove("model-*") == 110
    assert everything(cache) == ["file", "other"]
    assert remove("model-*") == 0


def test_too_little_room_is_said_before_anything_is_made(cache):
    with pytest.raises(InputError) as caught:
        made_once("model", fail, 10**15)
    assert str(caught.value).startswith(f"model takes another 1000000.0 GB in {cache}, which has ")
    assert str(caught.value).endswith(
        "set KVEVICT_CACHE to a directory that can be written and has room"
    )
    assert everything(cache) == []


def test_what_an_attempt_left_counts_towards_the_room(cache):
    (cache / ".model").mkdir(parents=True)
    with (cache / ".model" / "part").open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no room
    needed = shutil.disk_usage(cache).free + (1 << 39)
    made_once("model", fill, needed)
    with pytest.raises(InputError, match="other takes another"):
        made_once("other", fill, needed)


@pytest.mark.parametrize("variable", ["KVEVICT_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_a_place_that_cannot_be_written_is_named(monkeypatch, variable):
    for name in ("KVEVICT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/proc/nowhere")  # root cannot write there, either
    with pytest.raises(InputError, match=r"/proc/nowhere.* cannot be written \(No such file or "):
        made_once("model", fill, 0)


def test_without_a_home_the_variable_is_named(monkeypatch):
    for name in ("KVEVICT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # as docker run --user 54321 has it
    with pytest.raises(InputError, match="no home directory to keep models in: set KVEVICT_CACHE"):
        cache_dir()


def test_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("KVEVICT_CACHE", "~/models")
    assert cache_dir() == Path("/somewhere/models")
