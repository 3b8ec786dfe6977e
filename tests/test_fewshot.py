"""NACL's table 1 by script: its tables, what it refuses, and the whole of it where it can run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvevict.methods import build, describe
from reporting.fewshot import table

ROOT = Path(__file__).parents[1]
ROWS = [
    {"question": f"Is {n} more than 3?", "choices": ["no", "yes"], "label": int(n > 3)}
    for n in range(9)
]
CONFIG = [{"method": "full"}, {"method": "nacl", "keep_ratio": 0.2, "min_eviction_seqlen": 0}]
SEVEN = ("piqa", "copa", "openbookqa", "winogrande", "sciq", "arc_easy", "arc_challenge")


def run(*arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts/fewshot.py", *map(str, arguments)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    for name in ("piqa", "arc_easy"):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def record(correct: list[list[int]]) -> dict[int, dict]:
    """By example, from what is right by policy and example."""
    kept = [[20, 100] for _ in correct]
    return {index: {"correct": own, "kept": kept} for index, own in enumerate(zip(*correct))}


def test_a_table_has_what_was_published_of_all_seven_tasks_alone():
    names = {"h2o": {"keep_ratio": 0.2}, "tova": {"keep_ratio": 0.1}}
    policies = [describe(build(m, min_eviction_seqlen=0, **s)) for m, s in names.items()]
    of_task = {name: record([[1, 0], [1, 1]]) for name in SEVEN}
    whole = table("Llama-2-7b-hf", policies, 5, of_task)
    assert [row[0] for row in whole.rows] == ["H2O", "↳ published", "TOVA"]
    assert whole.rows[0][:2] == ["H2O", "20.0%"] and whole.rows[0][-1].startswith("0.500 ")
    assert whole.rows[1][-1] == "0.603"
    assert "table 1; over all examples" in whole.notes[-1]
    for model, shots, tasks in (
        ("Llama-2-7b", 9, SEVEN),
        ("Llama-3", 5, SEVEN),
        ("Llama-2-7b", 5, SEVEN[1:]),
    ):
        own = table(model, policies, shots, {name: of_task[name] for name in tasks})
        assert [row[0] for row in own.rows] == ["H2O", "TOVA"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "piqa,sciq"], "unknown task 'sciq'; choose from piqa, arc_easy"),
        (["--shots", "5,x"], "--shots takes whole numbers separated by commas, not 'x'"),
        (["--examples", "0"], "--examples and --processes must be at least 1"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--data_dir", "nowhere"], "there is no <task>.jsonl in nowhere"),
    ],
)
def test_bad_arguments_get_one_sentence(data_dir, tmp_path, flags, message):
    done = run("--out", tmp_path / "out", "--data_dir", data_dir, *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is optional")
def test_it_goes_on_where_it_stopped_and_prints_all_there_is(data_dir, tmp_path):
    config = tmp_path / "methods.yaml"
    config.write_text(json.dumps(CONFIG))
    flags = ["--out", tmp_path / "out", "--data_dir", data_dir, "--config", config]
    flags += ["--framework", "pytorch", "--model_path", "smollm2-135m-instruct"]
    flags += ["--examples", "2"]
    done = run(*flags, "--shots", "1", "--tasks", "piqa")
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "out" / "piqa-1.jsonl"
    whole = kept.read_bytes()
    kept.write_bytes(whole[: whole.rindex(b"{") + 9])  # killed in the middle of its second example
    done = run(*flags, "--shots", "1,2", "--seconds", "1")
    assert done.returncode == 0 and "Examples: piqa 1." in done.stdout, done.stderr
    done = run(*flags, "--shots", "1,2", "--processes", "3")
    assert done.returncode == 0, done.stderr
    assert kept.read_bytes() == whole, "shots and choices are those of the example, not of the run"
    assert done.stdout.count("| NACL ") == 2
    assert "Accuracy, 1 shots" in done.stdout and "arc_easy" in done.stdout
    assert "Examples: piqa 2, arc_easy 2." in done.stdout
    _, *found = map(json.loads, (tmp_path / "out" / "arc_easy-2.jsonl").read_text().splitlines())
    assert sorted(line["id"] for line in found) == [0, 1]
    for line in found:
        (full, entries), (own, same) = line["kept"]
        assert full == entries == same and 0 < own < 0.21 * entries
    config.write_text(json.dumps(CONFIG[:1]))
    other = run(*flags, "--shots", "1")
    assert other.returncode == 2 and "is of other settings" in other.stderr
    config.write_text(json.dumps(CONFIG))
    (data_dir / "piqa.jsonl").write_text('{"question": "?"}\n')
    bad = run(*flags, "--shots", "3", "--tasks", "piqa")
    assert (bad.returncode, bad.stderr.count("Traceback")) == (2, 0)
    assert 'piqa.jsonl, line 1: no "choices" that is a list' in bad.stderr
