"""The command that builds synthetic data, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import infinitebench
from benchmarks.examples import read_file
from benchmarks.synthetic import estimate_tokens, make_example
from benchmarks.synthetic.generators import GENERATORS

ROOT = Path(__file__).parents[1]


def build(out_dir: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "data/construct_synthetic_dataset.py", "--out_dir", out_dir]
    command = [str(part) for part in (*command, *arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_one_file_a_task_that_the_evaluation_reads(tmp_path):
    wanted = ["passkey", "kv_confusable", "variable_tracking"]
    done = build(tmp_path, "--task", ",".join(wanted), "--length", 700, "--num_examples", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"{tmp_path}/{task}.jsonl" for task in wanted]
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(wanted)
    for task in map(infinitebench.TASKS.get, wanted):
        examples = list(read_file(tmp_path / task.file, task))
        assert [example.id for example in examples] == [0, 1, 2]
        assert all(600 < estimate_tokens(task.prompt(one.fields).text) <= 700 for one in examples)


def test_example_i_is_the_same_however_many_are_asked_for(tmp_path):
    for count in (2, 5):
        build(tmp_path / str(count), "--task", "needle", "--length", 500, "--num_examples", count)
    few, many = (rows(tmp_path / count / "needle.jsonl") for count in "25")
    assert few == many[:2] and len(many) == 5


def test_flags_reach_the_generator(tmp_path):
    flags = ["--length", 600, "--num_examples", 4, "--seed", 3, "--split", "train"]
    build(tmp_path, "--task", "passkey", *flags, "--depth", "0,1", "--haystack", "prose")
    build(tmp_path, "--task", "math_find", *flags, "--kinds", "largest,second smallest")
    build(tmp_path, "--task", "multi_needle", *flags, "--needles", 2)
    build(tmp_path, "--task", "variable_tracking", *flags, "--hops", 1)
    build(tmp_path, "--task", "code_run", *flags, "--calls", 2)
    setting = {"seed": 3, "split": "train"}
    for task, options in {
        "passkey": {"haystack": "prose"},
        "math_find": {"kinds": ["largest", "second smallest"]},
        "multi_needle": {"needles": 2},
        "variable_tracking": {"hops": 1},
        "code_run": {"calls": 2},
    }.items():
        for i, row in enumerate(rows(tmp_path / f"{task}.jsonl")):
            hidden, depth = divmod(i, 2) if task == "passkey" else (i, "uniform")
            wanted = make_example(task, hidden, 600, depth=depth, **setting, **options)
            assert row == {**wanted, "id": i}


def test_every_depth_hides_the_same(tmp_path):
    flags = ["--task", "needle", "--length", 600, "--num_examples", 6]
    done = build(tmp_path, *flags, "--depth", "0,0.5,1")
    assert (done.returncode, done.stderr) == (0, "")
    made = rows(tmp_path / "needle.jsonl")
    assert [row["id"] for row in made] == list(range(6))
    by_depth = [[(row["input"], row["answer"]) for row in made[at::3]] for at in range(3)]
    assert by_depth[0] == by_depth[1] == by_depth[2] and by_depth[0][0] != by_depth[0][1]
    shares = [row["context"].index(row["answer"]) / len(row["context"]) for row in made]
    assert all(shares[i] < 0.2 < shares[i + 1] < 0.8 < shares[i + 2] for i in (0, 3))


def test_all_is_every_task(tmp_path):
    done = build(tmp_path, "--task", "all", "--length", 700, "--num_examples", 1, "--calls", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.stem for path in tmp_path.iterdir()} == set(GENERATORS)


def test_a_models_own_tokenizer_counts(tmp_path):
    """A model directory whose tokenizer makes one token of every character."""
    tokenizers = pytest.importorskip("tokenizers")
    numpy = pytest.importorskip("safetensors.numpy")
    model = tmp_path / "model"
    model.mkdir()
    sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    sizes += ["max_position_embeddings", "num_attention_heads"]
    config = {"architectures": ["LlamaForCausalLM"], **dict.fromkeys(sizes, 8)}
    config["num_attention_heads"] = 4
    (model / "config.json").write_text(json.dumps(config))
    numpy.save_file({}, model / "model.safetensors")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.save(str(model / "tokenizer.json"))
    done = build(tmp_path, "--task", "passkey", "--length", 2000, "--model_path", model)
    assert (done.returncode, done.stderr) == (0, "")
    task = infinitebench.TASKS["passkey"]
    lengths = [len(task.prompt(e.fields).text) for e in list(read_file(tmp_path / task.file, task))]
    assert len(lengths) == 50
    assert all(2000 - len("There and back again.") <= length <= 2000 for length in lengths)


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path):
    flags = ["--task", "passkey", "--length", 500, "--num_examples", 1]
    build(tmp_path, *flags)
    before = rows(tmp_path / "passkey.jsonl")
    done = build(tmp_path, *flags, "--seed", 1)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/passkey.jsonl is there already; --force replaces it\n"
    assert rows(tmp_path / "passkey.jsonl") == before
    assert build(tmp_path, *flags, "--seed", 1, "--force").returncode == 0
    assert rows(tmp_path / "passkey.jsonl") != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "longbook_qa_eng"], "cannot build task 'longbook_qa_eng'; choose from passkey"),
        (["--task", "passkey,nonsense"], "cannot build task 'nonsense'"),
        (["--task", "passkey", "--length", 10], "10 are too few"),
        (["--task", "passkey", "--length", 0], "--length is 0; it must be at least 1"),
        (["--task", "passkey", "--num_examples", -1], "--num_examples is -1"),
        (["--task", "passkey", "--depth", "0.5,2"], "depth 2.0"),
        (["--task", "kv_retrieval", "--haystack", "prose"], "has no haystack"),
        (["--task", "math_find", "--kinds", "biggest"], "unknown kind 'biggest'"),
        (
            ["--task", "needle", "--calls", 4],
            "--calls is for code_run, which is not among the tasks",
        ),
        (["--task", "passkey", "--out_dir", "/proc/nowhere"], "cannot write /proc/nowhere: "),
        (["--task", "passkey", "--out_dir", "pyproject.toml"], "cannot write pyproject.toml: "),
        (
            ["--task", "passkey", "--model_path", "no-such-model"],
            "there is no model 'no-such-model'",
        ),
    ],
)
def test_bad_arguments_get_one_sentence_and_leave_no_file(tmp_path, arguments, message):
    done = build(tmp_path / "out", "--num_examples", 2, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))
