"""``report.py answers`` as a process: what was asked and what every run said to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reporting.runs import BYTES_PER_TOKEN, TOKENS, write_data, write_run

SRC = Path(__file__).parents[2] / "src"


def answers(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "report.py", "answers", *map(str, arguments)]
    return subprocess.run(command, cwd=SRC, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two examples under the full cache and two methods, one of them wrong at the lower ratio."""
    root = tmp_path_factory.mktemp("answers")
    write_data(root / "data", 2)
    common = {"data": root / "data"}
    write_run(root / "results/full", "full", [True, True], **common)
    for ratio in (0.05, 0.2):
        right = [ratio > 0.1, True]
        write_run(root / f"results/nacl{ratio}", "nacl", right, keep_ratio=ratio, **common)
        write_run(root / f"results/snapkv{ratio}", "snapkv", right, keep_ratio=ratio, **common)
    return root


def test_every_question_stands_above_its_answers(root):
    done = answers("--output_dir", root / "results", "--data_dir", root / "data")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.strip().split("\n\nRetrieve.PassKey, ")
    assert first.startswith("Retrieve.PassKey, example 0")
    heading, table = first.split("\n\n")
    assert f"a prompt of {TOKENS:,} tokens" in heading
    assert "Which?" in heading and "right: 10000" in heading
    rows = [line.split() for line in table.splitlines()[1:]]
    mib = [f"{keep * TOKENS * BYTES_PER_TOKEN / 2**20:.1f}" for keep in (1, 0.2, 0.05)]
    assert rows == [
        ["full", "cache", "all", mib[0], "1", "10000"],
        ["NACL", "20%", mib[1], "1", "10000"],
        ["SnapKV", "20%", mib[1], "1", "10000"],
        ["NACL", "5%", mib[2], "0", "nothing"],
        ["SnapKV", "5%", mib[2], "0", "nothing"],
    ]
    assert second.startswith("example 1") and "right: 10001" in second


def test_no_line_is_wider_than_a_terminal(root, tmp_path):
    """However long an answer is."""
    write_run(tmp_path / "full", "full", [True], data=root / "data")
    predictions = tmp_path / "full/preds_passkey.jsonl"
    row = json.loads(predictions.read_text("utf-8").splitlines()[0])
    row["prediction"] = "and so on\n" * 100
    predictions.write_text(json.dumps(row) + "\n", "utf-8")
    done = answers("--output_dir", tmp_path, "--data_dir", root / "data")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert 30 <= done.stdout.count("and so on") < 100


@pytest.mark.parametrize("missing", ["results", "data"])
def test_what_is_not_there_is_named(root, tmp_path, missing):
    places = {"results": root / "results", "data": root / "data", missing: tmp_path / missing}
    done = answers("--output_dir", places["results"], "--data_dir", places["data"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert str(places[missing]) in done.stderr
