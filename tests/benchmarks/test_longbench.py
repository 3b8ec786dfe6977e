"""LongBench's data sets: prompts, rules and scores, also against published files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.examples import read_examples
from benchmarks.grading import grade
from benchmarks.longbench import E_TASKS, LONGBENCH, LONGBENCH_E, TASKS, with_code_similarity
from kvevict.errors import InputError

SRC = Path(benchmarks.__file__).parents[1]
SHARED = Path(__file__).parents[3] / "shared"
DATA, PUBLISHED = SHARED / "longbench", SHARED / "longbench_predictions"
BARE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
ROW = {
    "input": "Who?",
    "context": "Text with {braces}.",
    "answers": ["Paragraph 1 段落1"],
    "all_classes": None,
    "length": 4000,
}


def example(name: str, **fields) -> dict:
    classes = {"all_classes": ["Date", "Food"]} if TASKS[name].classes else {}
    return {**ROW, **classes, **fields}


def test_both_benchmarks_are_there_with_all_their_data_sets():
    assert benchmarks.get("longbench") is LONGBENCH and len(TASKS) == 21
    assert benchmarks.get("longbench_e") is LONGBENCH_E and len(E_TASKS) == 13
    assert len(LONGBENCH.resolve("english")) == 16
    assert sum(task.examples for task in TASKS.values()) == 4750
    assert sum(task.examples for task in E_TASKS.values()) == 3668
    for benchmark in (LONGBENCH, LONGBENCH_E):
        parts = [set(benchmark.groups[name]) for name in list(benchmark.groups)[2:]]
        assert set.union(*parts) == set(benchmark.tasks) == set(benchmark.groups["all"])
        assert sum(map(len, parts)) == len(benchmark.tasks)
    names = [task.name for task in LONGBENCH.resolve("few_shot,qasper,trec")]
    assert names == ["trec", "triviaqa", "samsum", "lsht", "qasper"]


def test_the_data_of_longbench_e_have_files_of_their_own():
    for name, task in E_TASKS.items():
        assert task.file == f"{name}_e.jsonl" and TASKS[name].file == f"{name}.jsonl"
        assert task.template == TASKS[name].template and task.metric is TASKS[name].metric
        assert LONGBENCH_E.file(Path("d"), task) == Path("d", "longbench", task.file)


@pytest.mark.parametrize("name", TASKS)
def test_rules_of_each_data_set(name):
    task = TASKS[name]
    assert task.chat == (name not in BARE)
    assert task.stop == ("\n" if name == "samsum" else "")
    assert task.first_line == (name in BARE - {"lcc", "repobench-p"})
    assert task.classes == (name in ("trec", "lsht"))
    prompt = task.prompt(example(name))
    assert prompt.context.endswith(ROW["context"])
    assert prompt.text == task.template.replace("{context}", ROW["context"]).replace(
        "{input}", ROW["input"]
    )


@pytest.mark.published("longbench")
@pytest.mark.parametrize("benchmark", [LONGBENCH, LONGBENCH_E], ids=lambda one: one.name)
def test_prompts_are_those_of_the_published_configuration(benchmark, tmp_path):
    templates = json.loads((DATA / "dataset2prompt.json").read_text("utf-8"))
    lengths = json.loads((DATA / "dataset2maxlen.json").read_text("utf-8"))
    (tmp_path / benchmark.folder).symlink_to(DATA)
    for task in benchmark.tasks.values():
        assert task.max_new_tokens == lengths[task.name]
        examples = list(read_examples(benchmark, task, tmp_path))
        assert examples
        for one in examples:
            assert task.prompt(one.fields).text == templates[task.name].format(**one.fields)
            assert one.fields["dataset"] == Path(task.file).stem


@pytest.mark.parametrize("name", TASKS)
def test_an_example_can_be_asked_and_graded(name):
    task, fields = TASKS[name], example(name)
    assert task.fault(fields) is None
    assert task.reference(fields) == {
        key: fields[key] for key in ("answers", "all_classes", "length")
    }
    assert task.score("", task.reference(fields)) == 0


@pytest.mark.parametrize(
    ("name", "fields", "fault"),
    [
        ("qasper", {"context": None}, 'has a "context" that is not a text'),
        ("qasper", {"input": 3}, 'has a "input" that is not a text'),
    ],
)
def test_what_is_no_example(name, fields, fault):
    assert TASKS[name].fault(example(name, **fields)) == fault


@pytest.mark.parametrize("key", ["input", "context", "answers", "all_classes", "length"])
def test_a_field_that_is_missing_is_named(key):
    fields = example("qasper")
    del fields[key]
    assert TASKS["qasper"].fault(fields) == f'has no "{key}"'


def test_a_bad_line_is_named_with_its_file(tmp_path):
    path = tmp_path / "longbench" / "passage_retrieval_en.jsonl"
    path.parent.mkdir()
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps({**ROW, 'answers': ['x']})}\n", "utf-8")
    task = TASKS["passage_retrieval_en"]
    with pytest.raises(InputError, match=f"{path}, line 2: .* 'x' names no paragraph"):
        list(read_examples(LONGBENCH, task, tmp_path))


def test_the_best_answer_counts():
    reference = {"answers": ["Paris", "the city of Paris", "Rome"], "all_classes": None}
    assert TASKS["qasper"].score("city of Paris", reference) == 1
    assert TASKS["qasper"].score("Paris city", reference) == pytest.approx(0.8)
    assert TASKS["qasper"].score("Paris", {"answers": []}) == 0


@pytest.mark.parametrize("name", ["trec", "triviaqa", "samsum", "lsht"])
def test_only_the_first_line_counts_where_examples_stand_before(name):
    reference = {"answers": ["Date"], "all_classes": ["Date", "Food"]}
    assert TASKS[name].score("\n\nDate\nFood", reference) == pytest.approx(1)
    assert TASKS[name].score(" \nDate", reference) == 0
    assert TASKS[name].score("Food\nDate", reference) == 0


def test_longbench_e_has_a_figure_for_each_class_of_length(tmp_path):
    lengths = [0, 3999, 4000, 7999, 8000, 99999]
    rows = [
        {"pred": answer, "answers": ["yes"], "all_classes": None, "length": length}
        for length, answer in zip(lengths, ["yes", "no", "yes", "yes", "no", "no"])
    ]
    path = tmp_path / "qasper.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    figures = grade(path, LONGBENCH_E, E_TASKS["qasper"]).figures
    assert figures == {"0-4k": 0.5, "4-8k": 1, "8k+": 0}
    assert list(grade(path, LONGBENCH, TASKS["qasper"]).figures.values()) == [0.5]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]), "utf-8")
    assert grade(path, LONGBENCH_E, E_TASKS["qasper"]).figures == {
        "0-4k": 0.5,
        "4-8k": 1,
        "8k+": None,
    }


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"answers": ["a"], "all_classes": None}, 'no "length"'),
        ({"answers": ["a"], "length": 1.5}, '"length" is not an integer'),
        ({"answers": "a", "length": 1}, '"answers" is not a list of texts'),
        ({"length": 1}, 'no "answers"'),
    ],
)
def test_a_prediction_that_cannot_be_graded_is_named(tmp_path, row, fault):
    path = tmp_path / "qasper.jsonl"
    path.write_text(json.dumps({"pred": "a", **row}) + "\n", "utf-8")
    with pytest.raises(InputError, match=f"{path}, line 1: {fault}"):
        grade(path, LONGBENCH_E, E_TASKS["qasper"])


@pytest.mark.parametrize("benchmark", [LONGBENCH, LONGBENCH_E], ids=lambda one: one.name)
def test_the_similarity_of_code_can_be_chosen(benchmark):
    reference = {"answers": ["aaaaab"], "all_classes": None, "length": 1}
    other = with_code_similarity(benchmark, "difflib")
    for name in ("lcc", "repobench-p"):
        assert benchmark.tasks[name].score("ababab", reference) == 0.67
        assert other.tasks[name].score("ababab", reference) == 0.33
    assert other.tasks["qasper"] is benchmark.tasks["qasper"]
    assert list(other.tasks) == list(benchmark.tasks)


def test_packages_are_needed_only_by_their_metrics():
    script = """
import sys
sys.modules.update(dict.fromkeys(("rouge", "jieba", "Levenshtein", "fuzzywuzzy", "numpy")))
from benchmarks.longbench import TASKS
from kvevict.errors import InputError
reference = {"answers": ["Paragraph 1 段落1"], "all_classes": ["a"], "length": 1}
for task in TASKS.values():
    task.score("", reference)
    try:
        task.score("something", reference)
    except InputError as error:
        print(task.name, "|", error)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SRC)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" | ") for line in done.stdout.splitlines())
    packages = {name: words.split("the package ")[1].split(",")[0] for name, words in said.items()}
    assert packages == {
        "multifieldqa_zh": "jieba",
        "dureader": "jieba",
        "vcsum": "jieba",
        "gov_report": "rouge",
        "qmsum": "rouge",
        "multi_news": "rouge",
        "samsum": "rouge",
        "lcc": "levenshtein",
        "repobench-p": "levenshtein",
    }


@pytest.mark.published("longbench_predictions")
@pytest.mark.parametrize(
    ("run", "backend"),
    [("full", "levenshtein"), ("snapkv-1024", "levenshtein"), ("adakv-256", "difflib")],
)
def test_published_scores_come_out(run, backend):
    benchmark = with_code_similarity(LONGBENCH, backend)
    published = json.loads((PUBLISHED / run / "result.json").read_text("utf-8"))
    slow = {"gov_report", "multi_news"}  # ROUGE of long texts takes half a minute
    found = {}
    for name in published.keys() - slow:
        path = PUBLISHED / run / f"{name}.jsonl"
        found[name] = 100 * grade(path, benchmark, benchmark.tasks[name], run).figures[""]
    assert found == pytest.approx({name: published[name] for name in found}, abs=0.00501)
    assert len(found) == 14
