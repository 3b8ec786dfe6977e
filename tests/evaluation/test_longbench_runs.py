"""LongBench from its files to its scores, with the tiny model."""

from __future__ import annotations

import json

import pytest
import tiny

import compute_scores
import eval_llama3
from benchmarks.longbench import LENGTH_CLASSES, LONGBENCH, LONGBENCH_E

TASKS = ("hotpotqa", "samsum", "trec")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory with two examples of three data sets of either benchmark."""
    path = tmp_path_factory.mktemp("longbench")
    for benchmark in (LONGBENCH, LONGBENCH_E):
        for name in TASKS:
            rows = [
                {
                    "input": f"Question {i}?\n",
                    "context": "Some words and others. " * (100 if i else 2),
                    "answers": ["words", "others"],
                    "all_classes": ["words", "others"] if name == "trec" else None,
                    "length": 5000 * i + 1000,
                }
                for i in range(2)
            ]
            tiny.write_lines(benchmark.file(path, benchmark.tasks[name]), *rows)
    return path


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", ["longbench", "longbench_e"])
def test_a_run_is_graded_as_published_files_are(evaluate, tmp_path, capsys, name):
    out = tmp_path / "out"
    flags = [f"--benchmark={name}", f"--task={','.join(TASKS)}", "--method=full,snapkv"]
    evaluate(*flags, "--keep_ratio=0.2")
    runs = sorted(path.name for path in out.iterdir())
    assert len(runs) == 2
    for run in runs:
        for task in TASKS:
            rows = read(out / run / f"preds_{task}.jsonl")
            assert [row["id"] for row in rows] == [0, 1]
            for row in rows:
                assert list(row) == ["id", "prediction", "answers", "all_classes", "length"]
        for row in read(out / run / "preds_samsum.jsonl"):
            assert row["prediction"] and "\n" not in row["prediction"]
        # 2,048 positions: 2 x 1,000 - 500 tokens, as for 4K and 32K models.
        stats = read(out / run / "stats_hotpotqa.jsonl")
        assert [row["prompt_tokens"] for row in stats][1:] == [1500]
        published = tmp_path / "published" / run
        published.mkdir(parents=True)
        for task in TASKS:
            rows = read(out / run / f"preds_{task}.jsonl")
            for row in rows:
                row["pred"] = row.pop("prediction")
                del row["id"]
            tiny.write_lines(published / f"{task}.jsonl", *rows)
    scores = {}
    for directory in ("out", "published"):
        capsys.readouterr()
        flags = ["--output_dir", tmp_path / directory, "--json", tmp_path / "scores.json"]
        assert compute_scores.main([*map(str, flags), "--benchmark", name]) == 0
        error = capsys.readouterr().err
        assert error.startswith("note: left out, without predictions: ") and "qasper" in error
        scores[directory] = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    assert scores["out"] == scores["published"] and list(scores["out"]) == runs
    for of_run in scores["out"].values():
        assert sorted(of_run) == sorted(TASKS)
        if name == "longbench_e":
            assert {tuple(figures) for figures in of_run.values()} == {tuple(LENGTH_CLASSES)}


def test_prompts_are_evicted_from_however_short_they_are(llama, data, tmp_path):
    flags = [f"--model_path={llama}", f"--data_dir={data}", f"--output_dir={tmp_path}"]
    more = ["--benchmark=longbench", "--task=hotpotqa", "--stop_idx=1", "--method=snapkv"]
    assert eval_llama3.main([*flags, *more, "--keep_ratio=0.2"]) == 0
    (stats,) = tmp_path.glob("*/stats_hotpotqa.jsonl")
    (row,) = read(stats)
    assert row["cache_bytes"] < 0.21 * row["full_cache_bytes"]
