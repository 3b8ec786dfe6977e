"""A study's page: tables in their places, forms apart, paired differences."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist, stdev

import pytest

from benchmarks.synthetic import make_example
from reporting import load, study
from tests.reporting.runs import write_run

SRC = Path(__file__).parents[2] / "src"
PAGE = """# By hand
<!-- table: methods -->
old
<!-- end -->
Between.
<!-- table: lengths -->
<!-- end -->
<!-- table: nacl -->
<!-- end -->
<!-- table: pairs -->
<!-- end -->
The end.
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """NACL in two forms, SnapKV and the full cache, on two tasks at two lengths."""
    root = tmp_path_factory.mktemp("study")
    for tokens in (1000, 2000):
        for task in ("passkey", "number_string"):
            common = {"task": task, "tokens": tokens}
            out = root / "runs" / f"{task}{tokens}"
            write_run(out / "full", "full", [True] * 4, **common)
            for ratio in (0.5, 0.2):
                common["keep_ratio"] = ratio
                right = [True, tokens == 1000, False, False]
                write_run(out / f"snap{ratio}", "snapkv", [True, True, False, True], **common)
                for seed in (0, 1):
                    write_run(out / f"nacl{ratio}{seed}", "nacl", right, seed=seed, **common)
            shares = {"proxy_token_keep_ratio": 0.19, "random_token_keep_ratio": 0.0}
            write_run(out / "form", "nacl", [True] * 4, **common, **shares)
    results = load.read_runs(root / "runs")
    load.write_scores(root / "scores.jsonl.gz", results)
    (root / "page.md").write_text(PAGE)
    return root


def run(root: Path, *flags: object) -> subprocess.CompletedProcess:
    named = {"--scores": "scores.jsonl.gz", "--page": "page.md", "--figures": "figures"}
    arguments = [part for flag, path in named.items() for part in (flag, root / path)]
    command = [sys.executable, "report.py", "study", *map(str, (*arguments, *flags))]
    return subprocess.run(command, cwd=SRC, capture_output=True, text=True)


def rows(text: str, title: str) -> list[list[str]]:
    table = text.split(f"**{title}", 1)[1].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]


def test_tables_are_put_in_their_places_and_the_rest_is_left(made):
    for _ in range(2):
        done = run(made)
        assert (done.returncode, done.stderr) == (0, "")
        text = (made / "page.md").read_text("utf-8")
        assert text.startswith("# By hand\n<!-- table: methods -->\n\n**Score by task")
        assert "old" not in text and "\nBetween.\n" in text and text.endswith("The end.\n")
        assert text.count("<!-- end -->") == 4 and text.count("**Score by task") == 1
    for name in ("mean", "tasks", "methods", "lengths"):
        assert (made / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_forms_have_a_table_of_their_own(made):
    run(made)
    text = (made / "page.md").read_text("utf-8")
    methods = [row[:2] for row in rows(text, "Score by task, all lengths")[2:]]
    assert methods[0] == ["full cache", "100%"]
    assert methods[1:] == [[m, r] for m in ("NACL", "SnapKV") for r in ("50%", "20%")]
    forms = rows(text, "Forms of NACL, all lengths")[2:]
    assert [row[:2] for row in forms] == [["NACL", "20%"], ["NACL (random 0)", "20%"]]
    assert forms[1][-2].startswith("1.000") and forms[1][-1].startswith("+0.625 [")


def test_the_means_of_all_are_sorted(made):
    results = load.read_scores(made / "scores.jsonl.gz")
    header, _, *table = rows(study.tables(results)["mean"].markdown(), "Score, mean over tasks")
    assert header[1:] == ["50%", "20%"]
    assert [row[0] for row in table] == ["SnapKV", "NACL"]
    assert [cell[:5] for cell in table[1][1:]] == ["0.375", "0.375"], "a form is no method"
    assert study.tables(results)["mean"].notes[0].startswith("With the full cache: 1.000 [")


def test_needles_are_told_apart_by_their_answers(tmp_path):
    """Right on names of places only, of both tasks: what an example asks for is made again."""
    for task in ("needle", "multi_needle"):
        answers = [make_example(task, i, 900, seed=1)["answer"] for i in range(12)]
        named = [not answer.isdigit() for answer in answers]
        assert 2 < sum(named) < 10
        for tokens in (1000, 2000):
            write_run(tmp_path / f"{task}{tokens}", "h2o", named, task=task, tokens=tokens)
    made = study.tables(load.read_runs(tmp_path))
    assert made["places"].rows[0][1].startswith("1.000 [")
    assert made["digits"].rows[0][1].startswith("0.000 [")


def test_lengths_are_pooled_and_told_apart(made):
    run(made)
    text = (made / "page.md").read_text("utf-8")
    (nacl,) = [
        row for row in rows(text, "Score by task, all lengths") if row[:2] == ["NACL", "20%"]
    ]
    assert nacl[2].startswith("0.375")  # 3 of 8 examples, both lengths
    header, _, *table = rows(text, "Score by prompt length, mean over tasks")
    assert header == ["Method", "Kept", "1K", "2K"]
    (nacl,) = [row for row in table if row[:2] == ["NACL", "20%"]]
    assert nacl[2].startswith("0.500") and nacl[3].startswith("0.250")


def test_pairs_are_compared_on_the_same_examples(made):
    _, _, *pairs = rows(
        study.tables(load.read_scores(made / "scores.jsonl.gz"))["pairs"].markdown(),
        "Pairs of methods, all tasks and lengths",
    )
    assert [row[:2] for row in pairs] == [["NACL against SnapKV", kept] for kept in ("50%", "20%")]
    # Examples 0 to 3 of either task, a mean over its two lengths each: eight clusters.
    gaps = [0, -0.5, 0, -1] * 2
    center, half = sum(gaps) / 8, NormalDist().inv_cdf(0.975) * stdev(gaps) / math.sqrt(8)
    expected = f"{center:+.3f} [{center - half:+.3f}, {center + half:+.3f}]"
    assert pairs[0][2:] == [expected, "0", "6"]


def test_a_difference_is_of_the_examples_that_both_have():
    ours = {("passkey", "4K", 1): 1.0, ("passkey", "4K", 2): 0.5, ("passkey", "4K", 3): 1.0}
    others = {("passkey", "4K", 2): 1.0, ("passkey", "4K", 3): 0.0, ("passkey", "8K", 1): 1.0}
    gap, won, lost = study.difference(ours, others)
    assert (gap.mean, won, lost) == (0.25, 1, 1)
    assert gap.low < -1 and gap.high > 1


def test_what_has_no_example_in_common_is_not_compared(tmp_path):
    """A study that has only begun: SnapKV at one length, NACL and a form of it at others."""
    shares = {"proxy_token_keep_ratio": 0.19, "random_token_keep_ratio": 0.0}
    write_run(tmp_path / "a", "snapkv", [True, False], tokens=1000)
    write_run(tmp_path / "b", "nacl", [True, False], tokens=2000)
    write_run(tmp_path / "c", "nacl", [True, False], tokens=3000, **shares)
    made = study.tables(load.read_runs(tmp_path))
    assert made["pairs"].rows == []
    assert [row[-1] for row in made["nacl"].rows] == ["", ""]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("nothing", "marks no tables (<!-- table: NAME --> to <!-- end -->)"),
        ("<!-- table: x -->\n<!-- end -->", "asks for a table 'x'; there are mean, methods"),
        (None, "cannot read"),
    ],
)
def test_a_bad_page_is_named(made, tmp_path, page, message):
    if page is not None:
        (tmp_path / "bad.md").write_text(page)
    done = run(made, "--page", tmp_path / "bad.md")
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert page is None or (tmp_path / "bad.md").read_text() == page


def test_two_models_are_no_study(made, tmp_path):
    write_run(tmp_path / "runs" / "a", "full", [True], model="one")
    write_run(tmp_path / "runs" / "b", "full", [True], model="other")
    results = load.read_runs(tmp_path / "runs")
    load.write_scores(tmp_path / "two.jsonl.gz", results)
    done = run(made, "--scores", tmp_path / "two.jsonl.gz")
    assert done.returncode == 2 and "a study is of one model in one mode, not of one" in done.stderr


SCORES = SRC.parent / "docs" / "data" / "study" / "scores.jsonl.gz"


@pytest.fixture(scope="module")
def measured():
    """The tables of the repository's own study, made once."""
    return study.tables(load.read_scores(SCORES))


def test_the_page_in_the_repository_is_that_of_its_scores(monkeypatch, measured):
    monkeypatch.setattr(study, "tables", lambda results: measured)
    page = SRC.parent / "docs" / "tiny_model.md"
    assert study.refreshed(page, []) == page.read_text("utf-8")
