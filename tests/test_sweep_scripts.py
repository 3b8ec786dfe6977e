"""run_study.sh and needle_grid.sh, as processes, on a tiny model: from nothing to scores."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.ruler_texts import write_texts
from tests.evaluation import tiny

ROOT = Path(__file__).parents[1]
CONFIG = "- method: full\n- {method: nacl, keep_ratio: [0.5, 0.2], min_eviction_seqlen: 8}\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what the scripts use, so that they write beside it, and a tiny model."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("src", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data").mkdir()
    shutil.copy(ROOT / "data" / "construct_synthetic_dataset.py", root / "data")
    tiny.write_llama(root / "model")
    write_texts(root / "cache" / "ruler-26.3")
    (root / "own.yaml").write_text(CONFIG)
    (root / "broken.yaml").write_text("method: nothing\n")
    return root


def run(tree: Path, script: str, *flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"scripts/{script}", "--model_path", "model", *map(str, flags)],
        cwd=tree,
        env={**os.environ, "PYTHON": sys.executable, "KVEVICT_CACHE": str(tree / "cache")},
        capture_output=True,
        text=True,
    )


def scores(tree: Path, name: str) -> list[dict]:
    file = tree / "docs" / "data" / name / "scores.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def test_from_nothing_to_scores_and_again(tree):
    flags = ["--name", "own", "--config", tree / "own.yaml", "--tasks", "passkey,math_find"]
    flags += ["--lengths", 700, "--examples", 3, "--slice", 2]
    done = run(tree, "run_study.sh", *flags, "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert "2 jobs, 2 at a time" in done.stdout and done.stdout.count(" of 2 done: ") == 2
    found = scores(tree, "own")
    assert len(found) == 3 * 2, "a row for each setting and task, though two jobs shared each"
    assert all(row["ids"] == [0, 1, 2] and len(row["scores"]) == 3 for row in found)
    assert all(None not in row["depths"] for row in found)
    assert all(650 < tokens <= 700 for row in found for tokens in row["prompt_tokens"])
    assert (tree / "report" / "own" / "report.html").exists()

    results = sorted((tree / "results" / "own").rglob("preds_*.jsonl"))
    before = [file.read_bytes() for file in results]
    results[0].unlink()
    assert run(tree, "run_study.sh", *flags).returncode == 0
    assert [file.read_bytes() for file in results] == before

    other = run(tree, "run_study.sh", *flags, "--examples", 4)
    assert other.returncode == 2
    assert "has 3 examples, not 4: remove data/own and results/own" in other.stderr


def test_a_needle_grid_ends_in_a_heat_map(tree):
    flags = ["--lengths", "700,1000", "--depth", "0,0.5,1", "--examples", 6]
    done = run(tree, "needle_grid.sh", "--config", tree / "own.yaml", *flags)
    assert done.returncode == 0, done.stderr
    assert (tree / "report" / "needle" / "depth-needle.png").read_bytes()[:4] == b"\x89PNG"
    fields = {}
    for length in (700, 1000):
        built = tree / "data" / "needle" / str(length) / "needle.jsonl"
        rows = [json.loads(line) for line in built.read_text("utf-8").splitlines()]
        for depth in range(3):
            fields[length, depth] = {(row["input"], row["answer"]) for row in rows[depth::3]}
    assert all(len(needles) == 2 for needles in fields.values())
    assert len(set(map(frozenset, fields.values()))) == 1, "each field has the same two needles"
    essays = json.loads((tree / "cache" / "ruler-26.3" / "PaulGrahamEssays.json").read_text())
    assert rows[0]["context"][-200:] in " ".join(essays["text"].split())
    depths = scores(tree, "needle")[0]["depths"]
    assert depths[0] < 0.2 < depths[1] < 0.8 < depths[2]


def test_a_failed_job_is_named_and_the_others_go_on(tree):
    flags = ["--name", "broken", "--config", tree / "broken.yaml", "--tasks", "passkey"]
    flags += ["--lengths", 700, "--examples", 2, "--slice", 1, "--processes", 2]
    done = run(tree, "run_study.sh", *flags)
    assert done.returncode != 0
    assert done.stdout.count("failed: see ") == 2
    for log in (tree / "results" / "broken" / "log").glob("*.err"):
        assert "broken.yaml: unknown method 'nothing'" in log.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nothing", "1"], "run_study.sh: unknown argument --nothing; known are --name"),
        (["--examples", "x"], "run_study.sh: --examples needs a number"),
        (["--slice", "0"], "run_study.sh: --slice must be at least 1"),
        (["--tasks"], "run_study.sh: --tasks needs a value"),
        (
            ["--depth", "0,0.5,1", "--examples", "10"],
            "run_study.sh: --examples 10 is no multiple of the 3 depths",
        ),
    ],
)
def test_bad_flags_get_one_sentence(tree, flags, message):
    done = run(tree, "run_study.sh", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["run_study.sh", "needle_grid.sh"])
def test_help_is_the_head_of_the_script(tree, script):
    done = run(tree, script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash scripts/{script} --" in done.stdout and "set -euo" not in done.stdout
