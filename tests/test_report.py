"""The report command, as a process, on run directories."""

from __future__ import annotations

import gzip
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from reporting.intervals import estimate
from tests.reporting.runs import write_data, write_run

SRC = Path(__file__).parents[1] / "src"


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "report.py", *map(str, arguments)]
    return subprocess.run(command, cwd=SRC, capture_output=True, text=True, encoding="utf-8")


def rows(markdown: str, title: str) -> dict[tuple[str, str], list[str]]:
    """The table below a title: cells by method and share kept."""
    table = markdown.split(f"**{title}**", 1)[1].strip().split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    return {(line[0], line[1]): line[2:] for line in lines if not line[0].startswith(":")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three methods on two lengths of one task, with data, and the report on them."""
    root = tmp_path_factory.mktemp("made")
    right = [True, True, False, True]
    for tokens, words in ((1000, 100), (2000, 200)):
        data = root / "data" / str(tokens)
        write_data(data, 4, words)
        common = {"data": data, "tokens": tokens}
        results = root / "results" / str(tokens)
        write_run(results / "full", "full", right, **common)
        for ratio in (0.1, 0.5):
            for seed in (0, 1):
                wrong = [seed == 0 and ratio > 0.1] * 4
                path = results / f"nacl{ratio}{seed}"
                write_run(path, "nacl", wrong, seed=seed, keep_ratio=ratio, **common)
            write_run(results / f"snapkv{ratio}", "snapkv", right, keep_ratio=ratio, **common)
    done = run("--output_dir", root / "results", "--data_dir", root / "data", "--out", root / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{root / 'out' / 'report.html'}\n"
    return root


def test_the_tables_say_what_was_scored_and_what_it_cost(made):
    text = (made / "out" / "report.md").read_text("utf-8")
    scores = rows(text, "Score at 1K tokens")
    assert list(scores) == [
        ("Method", "Kept"),
        ("full cache", "100%"),
        ("NACL", "50%"),
        ("NACL", "10%"),
        ("SnapKV", "50%"),
        ("SnapKV", "10%"),
    ]
    assert scores["Method", "Kept"] == ["Retrieve.PassKey"]
    expected = estimate([1, 1, 0, 1], range(4))
    assert scores["SnapKV", "10%"] == [f"0.750 [{expected.low:.2f}, {expected.high:.2f}]"]
    assert scores["NACL", "10%"][0].startswith("0.000 [0.00, ")
    alike = estimate([0.5] * 4, range(4))
    expected = [f"0.500 [{alike.low:.2f}, {alike.high:.2f}]"]
    assert scores["NACL", "50%"] == expected, "seeds are pooled by example"
    costs = rows(text, "Cost at 2K tokens")
    mib = 0.1 * 2000 * 100 / 2**20
    assert costs["NACL", "10%"] == [f"{mib:.1f}", "10.0%", "2.00 *", "5.0"]
    assert costs["full cache", "100%"] == [f"{10 * mib:.1f}", "100.0%", "2.00", "50.0"]
    assert "One prefill served several settings" in text
    assert "Decoded as one batch" not in text


def test_every_picture_it_shows_is_there(made):
    text = (made / "out" / "report.md").read_text("utf-8")
    files = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert files == [
        "score-1k.png",
        "cost-1k.png",
        "score-2k.png",
        "cost-2k.png",
        "depth-passkey.png",
    ]
    for file in files:
        header = (made / "out" / file).read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:])
        assert header[:8] == b"\x89PNG\r\n\x1a\n" and width >= 600 and height >= 300


def test_the_page_has_the_same_and_nothing_outside(made):
    page = (made / "out" / "report.html").read_text("utf-8")
    assert page.count("<svg") == 5 and page.count("<table") == 4
    without_names = page.replace('xmlns="http://www.w3.org', "").replace(
        'xmlns:xlink="http://www.w3.org', ""
    )
    assert not re.search(r"https?://", without_names)
    assert not re.search(r"src=|@import|<link", page)


def test_the_scores_alone_give_the_same_report(made):
    out = made / "again"
    done = run("--scores", made / "out" / "scores.jsonl.gz", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    for file in ("report.md", "report.html", "scores.jsonl.gz"):
        assert (out / file).read_bytes() == (made / "out" / file).read_bytes(), file


def test_one_ratio_many_methods_and_a_form_of_one(tmp_path):
    for place, method in enumerate(("full", "laprox", "h2o", "tova", "adakv", "keynorm", "random")):
        write_run(tmp_path / "r" / method, method, [True, place % 2 == 0])
    write_run(tmp_path / "r" / "form", "laprox", [False, False], project=False, keep_ratio=0.05)
    done = run("--output_dir", tmp_path / "r", "--out", tmp_path / "out", "--title", "<&|\udcff")
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert ("LaProx (project False)", "5%") in rows(text, "Score")
    assert "(methods.png)" in text


def test_a_run_in_progress_counts_as_far_as_it_is(tmp_path):
    write_run(tmp_path / "r" / "full", "full", [True, True, False])
    path = tmp_path / "r" / "full" / "preds_passkey.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    write_run(tmp_path / "r" / "begun", "h2o", [])
    done = run("--output_dir", tmp_path / "r", "--out", tmp_path / "out")
    note = f"note: {path}: the last line is half-written and left out\n"
    assert (done.returncode, done.stderr) == (0, note)
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert rows(text, "Score")["full cache", "100%"][0].startswith("1.000")
    assert "2 examples a task" in text and "H2O" not in text


def broken(root: Path, file: str, text: str) -> Path:
    write_run(root / "r" / "full", "full", [True])
    (root / "r" / "full" / file).write_text(text, "utf-8")
    return root / "r"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "{", r"run\.json is not the record of a run"),
        ("run.json", "[]", r"run\.json is not the record of a run"),
        ("run.json", '{"settings": {}, "tasks": {}}', r"run\.json is not the record of a run"),
        ("preds_passkey.jsonl", "{}\n", r"preds_passkey\.jsonl, line 1: no \"prediction\""),
        ("preds_passkey.jsonl", "x\n", r"preds_passkey\.jsonl, line 1: malformed JSON"),
        ("stats_passkey.jsonl", '{"id": 0}\n', r"stats_passkey\.jsonl does not hold"),
        ("stats_passkey.jsonl", "", r"have no predictions yet"),
    ],
)
def test_broken_files_are_named(tmp_path, file, text, message):
    done = run("--output_dir", broken(tmp_path, file, text), "--out", tmp_path / "out")
    assert done.returncode == 2
    *notes, error = done.stderr.splitlines()
    assert re.fullmatch(f"error: .*{message}.*", error), done.stderr
    assert all(line.startswith("note: ") for line in notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "nowhere"], "there is no output directory nowhere"),
        (["--output_dir", "{tmp}"], "there are no runs (run.json) below {tmp}"),
        (["--scores", "nowhere"], "cannot read nowhere: No such file or directory"),
        (["--scores", "{tmp}/s"], "{tmp}/s, line 1: not a line of the scores of a report"),
        (["--scores", "{tmp}/z"], "{tmp}/z is not a whole file"),
        (["--out", "{tmp}/s"], "cannot write {tmp}/s: File exists"),
        (["kept", "--task", "nothing"], "unknown task 'nothing'; choose"),
        (["kept", "--method", "x"], "unknown method 'x'; choose"),
        (["kept", "--method", "nacl,full"], "kept draws methods that evict; full keeps everything"),
        (["kept", "--task", "passkey,needle"], "--task takes one task, not passkey,needle"),
        (["kept", "--keep_ratio", "2"], "keep_ratio must lie between 0 and 1, not 2.0"),
        (["kept", "--data_dir", "nowhere"], "there is no nowhere/passkey.jsonl"),
        (["kept", "--data_dir", "{tmp}", "--example", "3"], "--example 3: "),
        (["kept", "--data_dir", "{tmp}", "--model_path", "x"], "there is no model 'x'"),
        (
            ["kept", "--data_dir", "{tmp}", "--framework", "x"],
            "framework must be paddle or pytorch",
        ),
    ],
)
def test_bad_arguments_get_one_sentence(tmp_path, arguments, message):
    (tmp_path / "s").write_text('{"task": "passkey"}\n')
    (tmp_path / "z").write_bytes(gzip.compress(b"{}")[:-5])
    write_data(tmp_path, 2)
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", tmp_path / "out"]
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message.format(tmp=tmp_path)}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_report_needs_no_framework(made):
    code = (
        "import sys, report; status = report.main(sys.argv[1:]); "
        "assert not {'paddle', 'paddlenlp', 'torch'} & set(sys.modules); sys.exit(status)"
    )
    arguments = ["--scores", made / "out" / "scores.jsonl.gz", "--out", made / "third"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    assert subprocess.run(command, cwd=SRC, capture_output=True).returncode == 0


def test_kept_draws_one_prompt_and_the_report_of_its_runs_shows_it(builtin_dir, tmp_path):
    write_data(tmp_path, 2)
    out = tmp_path / "out"
    done = run("kept", "--data_dir", tmp_path, "--method", "h2o, snapkv", "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out / 'kept.html'}\n"), done.stderr
    kept = json.loads((out / "kept.json").read_text("utf-8"))
    assert list(kept["masks"]) == ["h2o", "snapkv"] and kept["layers"] == 30
    assert kept["model"] == "smollm2-135m-longctx"
    assert (out / "kept.png").read_bytes()[:4] == b"\x89PNG"
    assert 'id="kept"' in (out / "kept.html").read_text("utf-8")
    for method, model in (("h2o", kept["model"]), ("snapkv", kept["model"]), ("snapkv", "llama")):
        write_run(tmp_path / model / method, method, [True], model=model, keep_ratio=0.2)
    done = run("--output_dir", tmp_path / kept["model"], "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'id="kept"' in (out / "report.html").read_text("utf-8")
    done = run("--output_dir", tmp_path / "llama", "--out", out)
    assert (done.returncode, done.stderr) == (
        0,
        f"{out / 'kept.json'} is of other runs, and not on the page\n",
    )
    assert 'id="kept"' not in (out / "report.html").read_text("utf-8")
