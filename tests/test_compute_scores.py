"""The grading command, as a process, on made-up runs and on the published predictions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import infinitebench
from tests.reporting.runs import write_run

SRC = Path(__file__).parents[1] / "src"
PUBLISHED = Path(__file__).parents[2] / "shared" / "predictions"


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "compute_scores.py", *map(str, arguments)]
    return subprocess.run(command, cwd=SRC, capture_output=True, text=True, encoding="utf-8")


def write(directory: Path, task: str, *pairs: tuple[str, object], end: str = "\n") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        json.dumps({"id": i, "prediction": prediction, "ground_truth": label})
        for i, (prediction, label) in enumerate(pairs)
    ]
    path = directory / f"preds_{task}.jsonl"
    path.write_text("\n".join(rows) + end, "utf-8")
    return path


def cells(output: str) -> dict[str, list[str]]:
    """The table by its columns: what stands below each title and its ruler."""
    rows = [line[1:-1].split("|") for line in output.splitlines() if line.startswith("|")]
    columns = ([cell.strip() for cell in column] for column in zip(*rows))
    return {title: below for title, _, *below in columns}


@pytest.fixture
def output_dir(tmp_path):
    write(tmp_path / "full", "passkey", ("1", "1"), ("2", "2"), ("3", "4"), ("5", "5"))
    write(tmp_path / "full", "kv_retrieval", ("a", "a"))
    write(tmp_path / "full", "needle", ("a", "a"))
    write(tmp_path / "nacl", "passkey", ("1", "1"), ("2", "3"))
    return tmp_path


def test_every_run_stands_side_by_side(output_dir):
    done = run("--output_dir", output_dir, "--json", output_dir / "scores.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert cells(done.stdout) == {
        "Run": ["(examples)", "full", "nacl"],
        "Retrieve.PassKey": ["2/4", "0.7500", "0.5000"],
        "Retrieve.KV": ["1", "1.0000", "-"],
        "Needle": ["1", "1.0000", "-"],
        "∞Bench average (tasks)": ["", "0.8750 (2)", "0.5000 (1)"],
        "without KV (tasks)": ["", "0.7500 (1)", "0.5000 (1)"],
    }
    *table, note = done.stdout.splitlines()
    assert len({len(line) for line in table}) == 1, "the columns line up"
    assert table[1].startswith("| :--------- | ---------------: | ")
    assert note == "Averages are over tasks of ∞Bench itself, so without Needle."
    assert json.loads((output_dir / "scores.json").read_text("utf-8")) == {
        "full": {"passkey": 0.75, "kv_retrieval": 1.0, "needle": 1.0},
        "nacl": {"passkey": 0.5},
    }


def test_one_run_and_chosen_tasks(output_dir):
    done = run("--output_dir", output_dir, "--model_name", "nacl", "--task", "math_calc,passkey")
    assert done.returncode == 0
    assert list(cells(done.stdout)) == ["Run", "Math.Calc", "Retrieve.PassKey"]
    assert cells(done.stdout)["Math.Calc"] == ["-", "-"]
    assert cells(done.stdout)["Run"] == ["(examples)", "nacl"]


def test_an_average_needs_two_tasks_and_one_without_kv_needs_kv(output_dir):
    one = cells(run("--output_dir", output_dir, "--task", "passkey,needle").stdout)
    assert list(one) == ["Run", "Retrieve.PassKey", "Needle"]
    write(output_dir / "full", "code_run", ("1", "2"))
    two = run("--output_dir", output_dir, "--task", "passkey,code_run").stdout
    assert list(cells(two))[3:] == ["∞Bench average (tasks)"]
    assert cells(two)["∞Bench average (tasks)"] == ["", "0.3750 (2)", "0.5000 (1)"]
    assert "without" not in two


def test_records_tell_the_methods_and_what_they_kept(output_dir):
    right = [True, False]
    forms = {
        "whole": {"min_eviction_seqlen": 9999},
        "evicted": {},
        "drawless": {"random_token_keep_ratio": 0.0, "proxy_token_keep_ratio": 0.19},
    }
    for name, form in forms.items():
        write_run(output_dir / name, "nacl", right, keep_ratio=0.2, **form)
    for name, form in {"next": {"heads": "next"}, "pooled": {"kernel": 7}}.items():
        write_run(output_dir / name, "nacl-variant", right, keep_ratio=0.05, **form)
    shares = {"whole": [1, 1], "evicted": [0.2, 0.204], "drawless": [0.2, 0.2], "next": [0.05]}
    for name, of_tasks in shares.items():
        file = output_dir / name / "run.json"
        record = json.loads(file.read_text("utf-8"))
        for task, share in zip(("passkey", "needle", "code_run"), [*of_tasks, 0.9]):
            bytes_ = {"cache_bytes": 1000 * share, "full_cache_bytes": 1000}
            record["tasks"][task] = {**record["tasks"].get(task, {}), **bytes_}
        file.write_text(json.dumps(record), "utf-8")
        if len(of_tasks) > 1:
            write(output_dir / name, "needle", ("a", "b"))
    found = cells(run("--output_dir", output_dir).stdout)
    about = dict(zip(found["Run"], zip(found["Method"], found["Kept"])))
    assert about == {
        "(examples)": ("", ""),
        "full": ("-", "-"),
        "nacl": ("-", "-"),
        "whole": ("nacl (min_eviction_seqlen 9999)", "100.0%"),
        "evicted": ("nacl", "20.0%–20.4%"),
        "drawless": ("nacl (random 0)", "20.0%"),
        "next": ("nacl-variant (heads next)", "5.0%"),
        "pooled": ("nacl-variant (kernel 7)", "-"),
    }, "a record without predictions of a task says nothing of it; nor one of a run in progress"


def test_what_was_published_of_the_same_setting_stands_below_a_run(tmp_path):
    model = "Llama-3.1-8B-Instruct"
    for name, keep in (("same", 0.2), ("less", 0.1)):
        write_run(tmp_path / name, "nacl", [True], keep_ratio=keep, model=model)
    labels = {"math_find": 10, "code_debug": ["f", "A"], "longbook_choice_eng": ["f", "A"]}
    for task in infinitebench.RELEASE_TASKS:
        if task != "passkey":
            write(tmp_path / "same", task, ("10", labels.get(task, ["10"])))
    done = run("--output_dir", tmp_path, "--task", "passkey,kv_retrieval")
    found = cells(done.stdout)
    assert found["Run"] == ["(examples)", "less", "same", "↳ published"]
    assert found["Method"] == ["", "nacl", "nacl", "nacl"]
    assert found["Retrieve.PassKey"] == ["1", "1.0000", "1.0000", "1.0000"]
    assert found["Retrieve.KV"] == ["1", "-", "1.0000", "0.0360"]
    assert found["∞Bench average (tasks)"][-1] == "-", "it is over tasks that are not shown"
    notes = [line for line in done.stdout.splitlines() if line[0] != "|"]
    assert notes[0].startswith("Published by NACL's release, README.md in github.com/PaddlePaddle")
    assert notes[1:] == [
        "What is published is over all examples of a task, ours over those counted."
    ]
    found = cells(run("--output_dir", tmp_path).stdout)
    assert found["∞Bench average (tasks)"][-1] == "0.3375"
    assert found["without KV (tasks)"][-1] == "0.3676"
    other = cells(run("--output_dir", tmp_path, "--model_name", "less").stdout)
    assert other["Run"] == ["(examples)", "less"]


def test_prompts_that_were_left_whole_are_counted(tmp_path):
    for name, method in (("full", "full"), ("nacl", "nacl")):
        write_run(tmp_path / name, method, [True] * 3)
        file = tmp_path / name / "run.json"
        record = json.loads(file.read_text("utf-8"))
        record["tasks"]["passkey"].update(examples=3, left_whole=2 if name == "nacl" else 3)
        file.write_text(json.dumps(record), "utf-8")
    *_, above, last = run("--output_dir", tmp_path).stdout.splitlines()
    assert above.startswith("| nacl")
    assert last == "nacl: 2 of 3 prompts were left whole."


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {"policy": 3}, "tasks": {}}'])
def test_a_broken_record_is_named_and_the_scores_stand(output_dir, text):
    (output_dir / "nacl" / "run.json").write_text(text, "utf-8")
    done = run("--output_dir", output_dir)
    assert done.returncode == 2
    assert done.stderr == f"error: {output_dir / 'nacl' / 'run.json'} is not the record of a run\n"
    assert cells(done.stdout)["Retrieve.PassKey"] == ["2/4", "0.7500", "0.5000"]


def test_all_is_a_column_for_each_task_of_the_release(output_dir):
    done = run("--output_dir", output_dir, "--task", "all")
    columns = cells(done.stdout)
    assert len(columns) == 1 + 11 + 2
    assert columns["Zh.QA"] == ["-", "-", "-"]
    assert columns["∞Bench average (tasks)"] == ["", "0.8750 (2)", "0.5000 (1)"]
    assert "so without" not in done.stdout


def test_runs_may_lie_deeper(tmp_path):
    write(tmp_path / "llama" / "nacl-0.2", "passkey", ("1", "1"))
    for name in ("llama/nacl-0.2", "llama/nacl-0.2/"):
        done = run("--output_dir", tmp_path, "--model_name", name)
        assert cells(done.stdout)["Run"] == ["(examples)", "llama/nacl-0.2"]


def test_runs_may_be_links_and_what_is_hidden_is_none(tmp_path):
    write(tmp_path / "elsewhere" / "nacl", "passkey", ("1", "1"))
    for name in (".ipynb_checkpoints", "full/.copies"):
        write(tmp_path / "out" / name, "passkey", ("1", "2"))
    write(tmp_path / "out" / "full", "passkey", ("1", "2"))
    (tmp_path / "out" / "theirs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "round").symlink_to(tmp_path / "out")
    found = cells(run("--output_dir", tmp_path / "out").stdout)
    assert found["Run"] == ["(examples)", "full", "round/full", "theirs/nacl"]
    assert found["Retrieve.PassKey"] == ["1", "0.0000", "0.0000", "1.0000"]
    done = run("--output_dir", tmp_path / "out", "--model_name", "theirs/nacl")
    assert cells(done.stdout)["Run"] == ["(examples)", "theirs/nacl"]


def test_math_calc_of_the_run_called_gpt4_drops_the_first_number(tmp_path):
    for name in ("gpt4", "other"):
        write(tmp_path / name, "math_calc", ("1, 4, 8", [4, 8]))
    done = run("--output_dir", tmp_path)
    assert cells(done.stdout)["Math.Calc"] == ["1", "1.0000", "0.0000"]
    assert "average" not in done.stdout


def test_a_malformed_file_is_named_and_the_rest_is_graded(output_dir):
    bad = output_dir / "nacl" / "preds_kv_retrieval.jsonl"
    bad.write_text('{"id": 0, "pred": "a", "label": "a"}\n{"id": 1, \n', "utf-8")
    done = run("--output_dir", output_dir, "--json", output_dir / "s.json")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {bad}, line 2: malformed JSON")
    assert done.stderr.count("\n") == 1
    assert cells(done.stdout)["Retrieve.KV"] == ["1", "1.0000", "-"]
    assert cells(done.stdout)["Retrieve.PassKey"] == ["2/4", "0.7500", "0.5000"]
    assert json.loads((output_dir / "s.json").read_text("utf-8"))["nacl"] == {"passkey": 0.5}


def test_a_label_of_the_wrong_kind_is_named_with_its_line(tmp_path):
    path = write(tmp_path / "run", "math_find", ("1", 1), ("1", "one"))
    done = run("--output_dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {path}, line 2: the label 'one' is not a number\n"


def test_a_label_or_an_id_of_no_use_is_named_with_its_line(tmp_path):
    null = write(tmp_path / "null", "code_run", ("1", 1), ("1", None))
    broken = write(tmp_path / "number", "code_run", ("1", 1))
    broken.write_text(broken.read_text("utf-8").replace('"id": 0', '"id": [0]'), "utf-8")
    done = run("--output_dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {null}, line 2: the label None is neither a text nor a number",
        f'error: {broken}, line 1: an "id" that is not an integer',
    ]


def test_a_run_in_progress_is_graded_without_its_half_written_line(tmp_path):
    path = write(tmp_path / "run", "passkey", ("1", "1"), ("2", "2"), end='\n{"id": 2, "predi')
    done = run("--output_dir", tmp_path)
    assert done.returncode == 0
    assert done.stderr == f"note: {path}: the last line is half-written and left out\n"
    assert cells(done.stdout)["Retrieve.PassKey"] == ["2", "1.0000"]


def test_a_whole_last_line_without_its_newline_counts(tmp_path):
    write(tmp_path / "run", "passkey", ("1", "1"), ("2", "3"), end="")
    assert cells(run("--output_dir", tmp_path).stdout)["Retrieve.PassKey"] == ["2", "0.5000"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "pass_key"], "unknown task 'pass_key'; choose from all, passkey, "),
        (["--model_name", "nobody"], "nobody; runs: full, nacl"),
        (["--output_dir", "nowhere"], "there is no output directory nowhere"),
        (["--output_dir", "."], "there are no predictions (preds_<task>.jsonl) below ."),
        (["--json", "nowhere/x.json"], "cannot write nowhere/x.json: No such file or directory"),
    ],
)
def test_bad_arguments_get_one_sentence(output_dir, arguments, message):
    done = run("--output_dir", output_dir, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_an_empty_file_is_no_score(tmp_path):
    path = write(tmp_path / "run", "passkey", end="")
    done = run("--output_dir", tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {path} has no predictions\n")


def test_grading_needs_no_framework():
    code = "import sys, compute_scores; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "compute_scores" in loaded
    assert not loaded & {
        "paddle",
        "paddlenlp",
        "torch",
        "numpy",
        "rouge_score",
        "nltk",
        "jieba",
        "matplotlib",
    }


@pytest.mark.parametrize(("similarity", "score"), [("levenshtein", 67.0), ("difflib", 33.0)])
def test_published_files_of_longbench_and_what_measures_their_code(tmp_path, similarity, score):
    directory = tmp_path / "out" / "theirs"
    directory.mkdir(parents=True)
    for name, pred, answer in (("lcc", "ababab", "aaaaab"), ("qasper", "the Seine", "Seine")):
        row = {"pred": pred, "answers": [answer], "all_classes": None, "length": 4321}
        (directory / f"{name}.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    flags = [
        "--output_dir",
        directory.parent,
        "--model_name",
        "theirs",
        "--json",
        tmp_path / "json",
    ]
    if similarity != "levenshtein":
        flags += ["--code_similarity", similarity]
    done = run("--benchmark", "longbench", *flags)
    assert done.returncode == 0
    assert json.loads((tmp_path / "json").read_text()) == {
        "theirs": {"qasper": 100.0, "lcc": score}
    }
    assert cells(done.stdout)["LCC"] == ["1", f"{score:.2f}"]
    assert f"with {similarity}" in done.stdout.splitlines()[-1]
    left_out = done.stderr.partition("without predictions: ")[2].rstrip().split(", ")
    assert len(left_out) == 19 and "dureader" in left_out
    done = run("--benchmark", "longbench_e", *flags, "--task", "code")
    assert done.returncode == 0
    scores = {"0-4k": None, "4-8k": score, "8k+": None}
    assert json.loads((tmp_path / "json").read_text()) == {"theirs": {"lcc": scores}}
    assert cells(done.stdout)["LCC 0-4k/4-8k/8k+"] == ["1", f"-/{score:.2f}/-"]
    assert done.stderr == "note: left out, without predictions: repobench-p\n"


@pytest.mark.published("predictions")
def test_published_predictions_get_the_benchmarks_own_scores(tmp_path):
    done = run("--output_dir", PUBLISHED, "--json", tmp_path / "scores.json")
    malformed = PUBLISHED / "yarn-mistral" / "preds_longbook_qa_chn.jsonl"
    assert done.returncode == 2
    assert done.stderr == f"error: {malformed}, line 189: malformed JSON (Extra data)\n"
    assert cells(done.stdout)["Zh.QA"][-1] == "-"
    scores = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    expected = json.loads((PUBLISHED / "expected.json").read_text("utf-8"))
    assert {run: sorted(of_run) for run, of_run in scores.items()} == {
        run: sorted(of_run) for run, of_run in expected.items()
    }
    for name, of_run in expected.items():
        for task, wanted in of_run.items():
            assert scores[name][task] == pytest.approx(wanted["score"], abs=1e-6), (name, task)
