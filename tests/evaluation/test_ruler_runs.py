"""RULER from nothing to its scores, with the tiny model, whose tokens are bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import compute_scores
from tests.benchmarks.ruler_texts import write_texts

ROOT = Path(__file__).parents[2]
TASKS = ("niah_single_1", "fwe")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def make(tmp_path: Path, *flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.ruler", "--out_dir", tmp_path, *map(str, flags)],
        cwd=ROOT / "src",
        env={**os.environ, "KVEVICT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def made(llama, tmp_path_factory) -> Path:
    """A data directory in which the first run made its data."""
    return tmp_path_factory.mktemp("ruler")


@pytest.mark.parametrize("compress", ["prompt", "context"])
def test_a_run_makes_its_data_once_and_says_what_it_measured(
    evaluate, made, tmp_path, capsys, compress
):
    flags = ["--benchmark=ruler", f"--data_dir={made}", "--length=1200,1500", "--stop_idx=2"]
    flags += [f"--task={','.join(TASKS)}", f"--compress={compress}", "--method=full,snapkv"]
    evaluate(*flags, "--keep_ratio=0.2")
    data = {path: path.read_bytes() for path in made.rglob("*.json*")}
    runs = sorted((tmp_path / "out").iterdir())
    assert len(runs) == 4
    for length in (1200, 1500):
        folder = made / "ruler" / str(length)
        record = json.loads((folder / "ruler.json").read_text())
        assert (record["examples"], record["seed"], record["length"]) == (500, 42, length)
        own = [run for run in runs if f"-{length}_" in run.name]
        assert len(own) == 2
        for run in own:
            assert json.loads((run / "run.json").read_text())["settings"]["length"] == length
            for task in TASKS:
                rows = read(folder / f"{task}.jsonl")
                assert len(rows) == 500 and all(row["length"] <= length + 50 for row in rows)
                for row, said in zip(rows, read(run / f"preds_{task}.jsonl")):
                    assert said["ground_truth"] == row["outputs"]
                for row, stats in zip(rows, read(run / f"stats_{task}.jsonl")):
                    new = 128 if task == "niah_single_1" else 50
                    assert stats["prompt_tokens"] == row["length"] - new

    capsys.readouterr()
    assert compute_scores.main(["--output_dir", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    for length in (1200, 1500):
        seen = "question seen" if compress == "prompt" else "question unseen"
        assert f" snapkv, {length} tokens, {seen} |" in table

    evaluate(*flags, "--keep_ratio=0.2", "--task=fwe,niah_single_1")
    assert {path: path.read_bytes() for path in made.rglob("*.json*")} == data
    assert sorted((tmp_path / "out").iterdir()) == runs


def test_a_name_of_ones_own_gets_the_length(evaluate, made, tmp_path):
    flags = ["--benchmark=ruler", f"--data_dir={made}", "--task=fwe", "--stop_idx=1"]
    evaluate(*flags, "--length=1200,1500", "--model_name=mine")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine-1200", "mine-1500"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--length=4096"], "--length 4096: the model has 2048 positions"),
        ([], "--length 4096: the model has 2048 positions"),
        (["--length=1k"], "--length takes whole numbers separated by commas, not '1k'"),
        (["--length=1200,0"], "--length takes whole numbers separated by commas, not '0'"),
        (["--length=300", "--task=niah_single_1"], "300 tokens are too few for an example of niah"),
        (["--benchmark=infinitebench", "--length=1200"], "--length is for ruler, whose data are"),
    ],
)
def test_lengths_that_cannot_be(evaluate, tmp_path, more, message):
    error = evaluate("--benchmark=ruler", f"--data_dir={tmp_path}", *more, status=2)
    assert message in error and not (tmp_path / "out").exists()


def test_data_of_another_tokenizer_are_refused(evaluate, llama, tmp_path):
    flags = ["--benchmark=ruler", f"--data_dir={tmp_path}", "--task=fwe", "--length=1200"]
    folder = tmp_path / "ruler" / "1200"
    record = {"length": 1200, "tokenizer": "another", "examples": 2, "seed": 42}
    tiny.write_lines(folder / "fwe.jsonl", {})
    tiny.write_lines(folder / "ruler.json", record)
    error = evaluate(*flags, status=2)
    assert f"{folder} holds data made with another tokenizer" in error


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"outputs": []}, 'has no list of "outputs"'),
        ({"outputs": "a"}, 'has no list of "outputs"'),
        ({"outputs": [1]}, 'has "outputs" that are not texts'),
        ({"question": None}, 'has a "question" that is not a text'),
    ],
)
def test_data_of_ones_own_are_checked(evaluate, tmp_path, change, fault):
    row = {"context": "a", "question": "b", "answer_prefix": "", "outputs": ["c"], **change}
    file = tiny.write_lines(tmp_path / "ruler" / "1200" / "vt.jsonl", row)
    flags = ["--benchmark=ruler", f"--data_dir={tmp_path}", "--task=vt", "--length=1200"]
    assert f"{file}, line 1: this vt example {fault}" in evaluate(*flags, status=2)


def test_the_command_makes_what_is_missing(llama, tmp_path):
    write_texts(tmp_path / "cache" / "ruler-26.3")
    flags = ["--model_path", llama, "--length", "1200,1500", "--num_examples", 3]
    assert make(tmp_path, *flags, "--task", "fwe").returncode == 0
    before = (tmp_path / "1200" / "fwe.jsonl").stat()
    done = make(tmp_path, *flags, "--task", "fwe,niah_multikey_2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "1200"), str(tmp_path / "1500")]
    assert (tmp_path / "1200" / "fwe.jsonl").stat() == before
    assert len(read(tmp_path / "1500" / "niah_multikey_2.jsonl")) == 3
    one, other = (read(tmp_path / str(n) / "niah_multikey_2.jsonl") for n in (1200, 1500))
    assert one != other


def test_the_command_refuses_what_does_not_go_together(llama, tmp_path):
    write_texts(tmp_path / "cache" / "ruler-26.3")
    flags = ["--model_path", llama, "--length", 9000, "--num_examples"]
    assert make(tmp_path, *flags, 3, "--task", "fwe").returncode == 0
    for more, message in (
        ([4, "--task", "fwe"], "holds data made with another examples"),
        ([3, "--task", "nothing"], "unknown task 'nothing'; choose from all, niah, qa"),
        ([3, "--task", "fwe", "--seed", 1], "holds data made with another seed"),
        ([3, "--task", "fwe", "--model_path", tmp_path / "no"], "no"),
    ):
        done = make(tmp_path, *flags, *more)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.count("\n") == 1
    done = make(tmp_path, "--model_path", llama, "--length", 8000, "--task", "qa_2")
    assert done.returncode == 2 and "error: qa_2 has" in done.stderr
    assert [path.name for path in (tmp_path / "8000").iterdir()] == ["ruler.json"]
    flags = ["--model_path", llama, "--length", 8000, "--num_examples", 2]
    assert make(tmp_path, *flags, "--task", "qa_2").returncode == 0, (
        "nothing there was made with 500"
    )
    assert len(read(tmp_path / "8000" / "qa_2.jsonl")) == 2
