"""scripts/study/run.sh, as a process, on a tiny model: from nothing to tables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reporting.load import read_scores
from tests.benchmarks.ruler_texts import write_texts
from tests.evaluation import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what the script uses, so that it writes beside it, and a tiny model."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("src", "scripts", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    few = "- {method: full, kv_dtype: [null, int2]}\n- {method: snapkv, keep_ratio: 0.2}\n"
    (root / "configs/studies/bytes.yaml").write_text(few)
    tiny.write_llama(root / "model")
    write_texts(root / "cache" / "ruler-26.3")
    rest = {"input": "Who?", "answers": ["A"], "all_classes": None, "length": 1}
    for name in ("hotpotqa", "triviaqa"):
        rows = [{"context": f"{name} {n} " * 9, **rest} for n in range(8)]
        tiny.write_lines(root / "own" / "longbench" / f"{name}.jsonl", *rows)
    return root


def run(tree: Path, *flags: object, python: object = sys.executable):
    return subprocess.run(
        ["bash", "scripts/study/run.sh", "--framework", "paddle", *map(str, flags)],
        cwd=tree,
        env={**os.environ, "PYTHON": str(python), "KVEVICT_CACHE": str(tree / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_from_nothing_to_tables_and_again(tree) -> None:
    flags = ["--quick", "--model_path", "model", "--data_dir", "own", "--processes", 2]
    flags += ["--only", "held_out_longbench,questions,bytes_ruler,forms_unprefixed"]
    done = run(tree, *flags)
    logs = "".join(file.read_text() for file in (tree / "study/log").iterdir())
    assert done.returncode == 0, done.stderr + logs
    scores = {file.name: read_scores(file) for file in (tree / "study/scores").iterdir()}
    counts = {name.partition(".")[0]: len(own) for name, own in scores.items()}
    assert counts == {  # settings times tasks
        "held_out_longbench": 16 * 2,
        "questions": 7 * 2,
        "bytes_ruler": 3 * 2,
        "forms_unprefixed": 6 * 2,
    }
    for result in (one for own in scores.values() for one in own):
        assert result.ids == [0]
        assert result.made["versions"] and result.made["model_files"]
    tables = (tree / "study/tables.md").read_text()
    assert tables.startswith("# held_out\n") and "| fade |" in tables
    assert "| full | 100% | 2 |" in tables.partition("# bytes_ruler")[2]
    made = tree / "study/data/808/ruler/1200"
    record = json.loads((made / "ruler.json").read_text())
    assert (record["seed"], record["examples"]) == (808, 1)
    before = {file: file.stat().st_mtime_ns for file in (tree / "study").rglob("preds_*.jsonl")}
    assert run(tree, *flags).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "real_ruler,nothing"], "run.sh: there is no run nothing: real_ruler real_lo"),
        (["--nothing", "1"], "run.sh: unknown argument --nothing; --help shows what there is"),
        (["--gpus", "x"], "run.sh: --gpus needs a number"),
        (["--processes", "0"], "run.sh: --processes must be at least 1"),
        (["--out"], "run.sh: --out needs a value"),
    ],
)
def test_bad_flags_get_one_sentence(tree, flags, message) -> None:
    done = run(tree, "--data_dir", "own", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_a_run_that_fails_is_named_and_the_others_go_on(tree) -> None:
    (tree / "configs/studies/confirm.yaml").write_text("method: nothing\n")
    flags = ["--quick", "--model_path", "model", "--data_dir", "own", "--out", "other"]
    done = run(tree, *flags, "--only", "held_out_longbench,forms_questions")
    assert done.returncode == 1
    assert done.stderr.endswith("failed: held_out_longbench\n")
    assert [file.name for file in (tree / "other/scores").iterdir()] == ["forms_questions.jsonl.gz"]


def test_a_process_that_fails_does_not_leave_the_others_waiting(tree) -> None:
    broken = tree / "python"
    broken.write_text(f'#!/bin/sh\n[ "$RANK" != 1 ] || exit 3\nexec "{sys.executable}" "$@"\n')
    broken.chmod(0o755)
    flags = ["--quick", "--model_path", "model", "--data_dir", "own", "--out", "broken"]
    done = run(tree, *flags, "--processes", 2, "--only", "forms_questions", python=broken)
    assert done.returncode == 1 and done.stderr.endswith("failed: forms_questions\n")


def test_help_is_the_head_of_the_script(tree) -> None:
    done = run(tree, "--help")
    assert done.returncode == 0 and "bash scripts/study/run.sh --quick" in done.stdout
    assert "set -euo" not in done.stdout
