"""What CONTRIBUTING.md says is enough to add a benchmark is enough."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation import tiny

ROOT = Path(__file__).parents[2]
PLACES = dict(zip("ABCD", ["north", "south", "east", "west"]))
ROWS = [
    {
        "context": f"The river {name} runs to the {PLACES[letter]}. " * 20,
        "question": f"Where does the {name} run?",
        **{f"choice_{key}": place for key, place in PLACES.items()},
        "answer": letter,
    }
    for name, letter in [("Arne", "C"), ("Bure", "A"), ("Cam", "D")]
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The project's source with the example in it."""
    copy = tmp_path_factory.mktemp("checkout") / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", copy.parent / "configs")
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Adding a benchmark")[1]
    (example,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    (copy / "benchmarks" / "longbench_v2.py").write_text(example, "utf-8")
    return copy


def run(source: Path, *command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_evaluated_graded_and_reported(source: Path, tmp_path: Path) -> None:
    model = tiny.write_llama(tmp_path / "tiny")
    tiny.write_lines(tmp_path / "data" / "longbench_v2" / "choices.jsonl", *ROWS)
    out = ["--output_dir", tmp_path / "out"]
    own = ["--model_path", model, "--data_dir", tmp_path / "data", "--benchmark", "longbench_v2"]
    run(source, "eval_llama3.py", *own, *out, "--method", "snapkv", "--budget", "64")
    (record,) = (tmp_path / "out").glob("*/run.json")
    assert json.loads(record.read_text())["tasks"]["choices"]["examples"] == 3
    # The tiny model says nothing; what it should have said is graded here.
    file = record.with_name("preds_choices.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["ground_truth"] for row in rows] == ["C", "A", "D"]
    said = ["The correct answer is (C).", "**The correct answer is A**", "The answer is (D)"]
    for row, text in zip(rows, said):
        row["prediction"] = text
    tiny.write_lines(file, *rows)
    scores = tmp_path / "scores.json"
    table = run(source, "compute_scores.py", *out, "--json", scores)
    assert "66.7" in table
    assert list(json.loads(scores.read_text()).values()) == [{"choices": 66.7}]
    run(source, "report.py", *out, "--out", tmp_path / "report")
    assert "Choices" in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_a_line_that_is_no_example_is_named(source: Path, tmp_path: Path) -> None:
    code = (
        "import benchmarks; from benchmarks.examples import read_file; from pathlib import Path\n"
        f"list(read_file(Path({str(tmp_path / 'x.jsonl')!r}), "
        "benchmarks.get('longbench_v2').tasks['choices']))"
    )
    first, second, _ = ROWS
    tiny.write_lines(tmp_path / "x.jsonl", first, {**second, "question": 5})
    with pytest.raises(AssertionError, match='line 2: this choices example has a "question"'):
        run(source, "-c", code)
    unanswered = {key: value for key, value in second.items() if key != "answer"}
    tiny.write_lines(tmp_path / "x.jsonl", first, unanswered)
    with pytest.raises(AssertionError, match='line 2: this choices example has no "answer"'):
        run(source, "-c", code)
