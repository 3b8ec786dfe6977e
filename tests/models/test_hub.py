"""A model that no hub gives away: the command says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from kvevict.backends import FRAMEWORKS

SRC = Path(__file__).resolve().parents[2] / "src"
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


@pytest.fixture
def gated() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gated) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


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


def test_a_gated_model_is_said_to_be_gated(gated, tmp_path):
    error = evaluate(tmp_path, gated)
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
