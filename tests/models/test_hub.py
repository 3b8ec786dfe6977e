"""Models of a hub: what is in a cache is taken, and what cannot be had is said why."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from kvevict.backends import FRAMEWORKS
from tests.evaluation import tiny

SRC = Path(__file__).resolve().parents[2] / "src"
COMMIT = "0123456789" * 4
NOBODY = "http://127.0.0.1:9"


class Gated(BaseHTTPRequestHandler):
    """Hugging Face's answers where a licence has not been accepted."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/" else 403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model some/model is restricted.")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Lacking(Gated):
    """A hub that has none of the files asked for; it keeps the paths."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    do_GET = do_HEAD


@pytest.fixture
def cache(tmp_path) -> Path:
    """Hugging Face's cache with ``acme/tiny`` in it, as another program has left it."""
    repository = tmp_path / "hub" / "models--acme--tiny"
    tiny.write_llama(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


def tokenizer(cache: Path, endpoint: str, **environment: str) -> tuple[str, str, float]:
    """Reads the tokenizer of ``acme/tiny`` twice: stdout, stderr, seconds for that alone."""
    code = (
        "import time\nfrom kvevict import environment, models\nenvironment.configure()\n"
        "began = time.monotonic()\n"
        "one, two = (models.load_tokenizer('acme/tiny').encode('a') for _ in '12')\n"
        "assert one == two; print(one, time.monotonic() - began)"
    )
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SRC,
        env={**os.environ, "HTTPS_PROXY": NOBODY, **own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found, _, seconds = done.stdout.strip().rpartition(" ")
    return found, done.stderr, float(seconds)


def test_a_model_in_the_cache_needs_no_network(cache):
    found, error, _ = tokenizer(cache, NOBODY)
    assert found.startswith("[")
    snapshot = cache / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    assert error.startswith(f"note: {snapshot} may lack generation_config.json, ")
    assert f" of acme/tiny: {NOBODY} does not answer: " in error and error.count("\n") == 2
    assert tokenizer(cache, NOBODY, HF_HUB_OFFLINE="1")[:2] == (found, "")


def test_what_the_cache_does_not_know_is_asked_for_once_and_at_its_own_revision(cache):
    Lacking.asked.clear()
    with served(Lacking) as endpoint:
        assert tokenizer(cache, endpoint)[1] == ""
    asked = [path for path in Lacking.asked if "/acme/" in path]  # not the client's own business
    files = [path.rpartition("/")[2] for path in asked]
    assert {"generation_config.json", "tokenizer_config.json"} <= set(files)
    assert len(files) == len(set(files)), "the second time it is known that there are none"
    assert not {"config.json", "model.safetensors", "tokenizer.json"} & set(files)
    assert all(f"/resolve/{COMMIT}/" in path for path in asked)


def test_a_hub_that_is_silent_is_named_and_given_up(cache):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        _, error, seconds = tokenizer(cache, endpoint)
    waited, note, *again = error.splitlines()
    assert waited == f"waiting for {endpoint}" and again == [waited, note]
    assert note.endswith(f" of acme/tiny: {endpoint} does not answer: timed out")
    assert seconds < 60


def evaluate(tmp_path: Path, endpoint: str) -> str:
    """What the command prints to stderr where only ``endpoint`` can be reached."""
    example = {"context": "c", "input": "i", "answer": "1"}
    (tmp_path / "passkey.jsonl").write_text(json.dumps(example) + "\n")
    framework = next(name for name, packages in FRAMEWORKS.items() if all(map(find_spec, packages)))
    proxies = {"HTTPS_PROXY": NOBODY, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "eval_llama3.py", "--model_path=some/model", "--task=passkey",
         f"--framework={framework}", f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}"],
        cwd=SRC,
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), **proxies},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()
    return done.stderr


def test_a_gated_model_is_said_to_be_gated(tmp_path):
    with served(Gated) as endpoint:
        error = evaluate(tmp_path, endpoint)
    assert error.startswith("error: some/model could not be had as safetensors from ")
    assert "(GatedRepoError: 403 Client Error." in error
    assert error.endswith(
        "Access to model some/model is restricted.); accept its licence at "
        "https://huggingface.co/some/model and set HF_TOKEN; smollm2-135m-instruct is a model that "
        "needs no hub\n"
    )
    assert error.count("\n") == 1


def test_a_hub_that_does_not_answer_is_named(tmp_path):
    error = evaluate(tmp_path, NOBODY)
    assert f"(ConnectionError: {NOBODY} does not answer: " in error
    assert "smollm2-135m-instruct is a model that needs no hub" in error and "licence" not in error
    assert error.count("\n") == 1
