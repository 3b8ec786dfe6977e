"""The download script against a local server that can break off, refuse, or ignore ranges."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks import infinitebench, longbench

SCRIPT = Path(__file__).parents[1] / "scripts" / "download_dataset.sh"
ROW = {"context": "x" * 200, "input": "What is the pass key?", "answer": "1"}
PUBLISHED = [name for name, task in infinitebench.TASKS.items() if task.examples]
WHOLE = (json.dumps(ROW) + "\n").encode() * infinitebench.TASKS["passkey"].examples


class Server(ThreadingHTTPServer):
    """Serves ``content`` for every path; sends at most ``break_after`` bytes of an answer."""

    content = WHOLE
    break_after: int | None = None
    ranges = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        start = int(asked.split("=")[1].rstrip("-")) if asked and server.ranges else 0
        size = len(server.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        self.wfile.write(server.content[start:][: server.break_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def download(
    out_dir: Path, port: int, *arguments: str, task: str = "passkey"
) -> subprocess.CompletedProcess:
    arguments = arguments or ("--task", task)
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments, "--out_dir", str(out_dir)],
        env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}/", "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def assert_one_sentence(done: subprocess.CompletedProcess, status: int, *parts: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_a_whole_file_gets_its_name_and_is_not_fetched_twice(server, tmp_path):
    done = download(tmp_path, server.server_port)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["passkey.jsonl"]
    assert (tmp_path / "passkey.jsonl").read_bytes() == WHOLE
    path = "/datasets/xinrongzhang2022/InfiniteBench/resolve/main/passkey.jsonl?download=true"
    assert server.requests == [(path, None)]
    assert download(tmp_path, server.server_port).returncode == 0
    assert len(server.requests) == 1


def test_a_broken_transfer_is_resumed_where_it_stopped(server, tmp_path):
    server.break_after = 50_000
    done = download(tmp_path, server.server_port)
    assert_one_sentence(done, 1, "passkey.jsonl", "broke off", "run this again")
    assert names(tmp_path) == ["passkey.jsonl.part"]
    server.break_after = None
    assert download(tmp_path, server.server_port).returncode == 0
    assert server.requests[-1][1] == "bytes=50000-"
    assert names(tmp_path) == ["passkey.jsonl"]
    assert (tmp_path / "passkey.jsonl").read_bytes() == WHOLE


def test_a_server_without_ranges_gets_the_whole_file_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "passkey.jsonl.part").write_bytes(WHOLE[:50_000])
    assert download(tmp_path, server.server_port).returncode == 0
    assert (tmp_path / "passkey.jsonl").read_bytes() == WHOLE


def test_a_finished_part_needs_no_server(server, tmp_path):
    (tmp_path / "passkey.jsonl.part").write_bytes(WHOLE)
    assert download(tmp_path, server.server_port).returncode == 0
    assert names(tmp_path) == ["passkey.jsonl"] and not server.requests


@pytest.mark.parametrize("part", [b"<html>" * 1000, WHOLE * 2], ids=["garbage", "too long"])
def test_a_part_of_something_else_is_replaced(server, tmp_path, part):
    (tmp_path / "passkey.jsonl.part").write_bytes(part)
    assert download(tmp_path, server.server_port).returncode == 0
    assert (tmp_path / "passkey.jsonl").read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[: -len(json.dumps(ROW)) - 1], "has 589 examples, the published file has 590"),
        (WHOLE[:-9], "line 590: malformed JSON"),
        (b"<html>sign in</html>", "line 1: malformed JSON"),
    ],
    ids=["a line short", "cut", "a web page"],
)
def test_what_is_not_the_published_file_is_not_kept(server, tmp_path, content, message):
    server.content = content
    done = download(tmp_path, server.server_port)
    assert_one_sentence(done, 1, "the download is not whole", message)
    assert names(tmp_path) == []


def test_without_a_server_nothing_is_left_behind(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = download(tmp_path, unused.getsockname()[1])
    assert_one_sentence(done, 1, "passkey.jsonl", "the server cannot be reached")
    assert names(tmp_path) == []


def test_a_file_of_ones_own_is_not_replaced(server, tmp_path):
    own = json.dumps(ROW).encode()
    (tmp_path / "passkey.jsonl").write_bytes(own)
    done = download(tmp_path, server.server_port)
    assert_one_sentence(done, 2, f"{tmp_path}/passkey.jsonl has 1 examples", "move it away")
    assert (tmp_path / "passkey.jsonl").read_bytes() == own and not server.requests


@pytest.mark.parametrize(
    ("task", "message"), [("nonsense", "unknown task 'nonsense'"), ("needle", "is built by data/")]
)
def test_a_task_without_a_published_file_is_named(tmp_path, task, message):
    done = download(tmp_path, 9, task=task)
    assert_one_sentence(done, 2, message)
    offered = done.stderr.partition("choose from all, ")[2].split(", ")
    assert offered in ([""], [*PUBLISHED[:-1], PUBLISHED[-1] + "\n"])


LONGBENCH = {
    task.file: task.examples
    for benchmark in longbench.BENCHMARKS
    for task in benchmark.tasks.values()
}
EXAMPLE = {
    "input": "x",
    "context": "x",
    "answers": ["Paragraph 1, 段落1"],
    "all_classes": ["x"],
    "length": 1,
}


def archive(**changed: int | None) -> bytes:
    """LongBench's data.zip; ``changed`` has other numbers of lines, None for no file."""
    line, packed = json.dumps(EXAMPLE) + "\n", io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data/nq.jsonl", "no data set of this version\n")
        for name, lines in {**LONGBENCH, **changed}.items():
            if lines is not None:
                file.writestr(f"data/{name}", line * lines)
    return packed.getvalue()


def test_longbench_is_unpacked_and_not_fetched_twice(server, tmp_path):
    server.content = archive()
    for _ in range(2):
        done = download(tmp_path, server.server_port, "longbench")
        assert (done.returncode, done.stderr) == (0, "")
    path = "/datasets/THUDM/LongBench/resolve/main/data.zip?download=true"
    assert server.requests == [(path, None)]
    assert names(tmp_path) == ["longbench"]
    assert names(tmp_path / "longbench") == sorted(LONGBENCH) and len(LONGBENCH) == 34
    for name, lines in LONGBENCH.items():
        assert (tmp_path / "longbench" / name).read_bytes().count(b"\n") == lines


def test_a_broken_transfer_of_longbench_is_resumed_where_it_stopped(server, tmp_path):
    server.content = archive()
    server.break_after = 5_000
    done = download(tmp_path, server.server_port, "longbench")
    assert_one_sentence(done, 1, "data.zip", "broke off", "run this again")
    assert names(tmp_path / "longbench") == ["data.zip.part"]
    server.break_after = None
    assert download(tmp_path, server.server_port, "longbench").returncode == 0
    assert server.requests[-1][1] == "bytes=5000-"
    assert names(tmp_path / "longbench") == sorted(LONGBENCH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>sign in</html>", "data.zip.part is not a whole zip archive"),
        (archive()[:-30], "data.zip.part is not a whole zip archive"),
        (bytes(archive()).replace(b"\x95", b"\x96"), "data.zip.part is not a whole zip archive"),
        (archive(**{"lcc.jsonl": 499}), "lcc.jsonl has 499 examples, the published file has 500"),
        (archive(**{"trec_e.jsonl": None}), "data.zip.part has no trec_e.jsonl"),
    ],
    ids=["a web page", "cut", "damaged", "a line short", "a file short"],
)
def test_what_is_not_longbench_is_not_kept(server, tmp_path, content, message):
    server.content = content
    done = download(tmp_path, server.server_port, "longbench")
    assert_one_sentence(done, 1, "the download is not whole", message)
    assert not (tmp_path / "longbench" / "data.zip.part").exists()
    assert len(server.requests) == 2


def test_a_file_of_ones_own_among_longbench_is_not_replaced(server, tmp_path):
    own = tmp_path / "longbench" / "qasper.jsonl"
    own.parent.mkdir()
    own.write_text(json.dumps(EXAMPLE), "utf-8")
    done = download(tmp_path, server.server_port, "longbench")
    assert_one_sentence(done, 2, f"{own} has 1 examples", "move it away")
    assert own.read_text("utf-8") == json.dumps(EXAMPLE) and not server.requests


def test_longbench_comes_whole(tmp_path):
    done = download(tmp_path, 9, "longbench", "--task", "qasper")
    assert_one_sentence(done, 2, "--task")


def test_any_python_will_do():
    code = """
import sys
sys.modules.update(dict.fromkeys(("numpy", "tqdm", "yaml", "rouge_score", "paddle", "torch")))
sys.argv = ["benchmarks", "missing", "longbench", "few_shot", "nowhere"]
import runpy
runpy.run_module("benchmarks", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parents[1] / "src", capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["trec", "triviaqa", "samsum", "lsht"]
