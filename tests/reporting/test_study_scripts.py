"""The scripts of the search: LongBench in halves, and the losses that the pages quote."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEARCH = ROOT / "docs" / "data" / "search"
UNSEEN = ROOT / "docs" / "data" / "unseen"


def script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    call = [sys.executable, ROOT / "scripts" / "study" / name, *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True)


def test_halves_share_no_context_and_lose_no_example(tmp_path) -> None:
    def row(number: int, question: str = "") -> dict:
        rest = {"answers": ["a"], "all_classes": None, "length": 1}
        return {"context": f"text {number}\u2028 more", "input": question, **rest}

    own = [row(number) for number in range(40)]
    extended = [row(0), row(1, "another"), *(row(number) for number in range(40, 50))]
    data = tmp_path / "data" / "longbench"
    data.mkdir(parents=True)
    for name, rows in (("qasper", own), ("qasper_e", extended)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (data / f"{name}.jsonl").write_text(text, "utf-8")
    out = tmp_path / "out"
    done = script("halves.py", "--data_dir", data.parent, "--out", out, "--task", "qasper")
    assert done.returncode == 0, done.stderr
    halves = {
        name: [json.loads(line) for line in (out / name / "longbench/qasper.jsonl").open("rb")]
        for name in ("development", "held_out", "no_context")
    }
    contexts = [{row["context"] for row in halves[n]} for n in ("development", "held_out")]
    assert all(contexts) and not contexts[0] & contexts[1]
    found = [
        (row["context"], row["input"]) for n in ("development", "held_out") for row in halves[n]
    ]
    wanted = {(row["context"], row["input"]) for row in own + extended}
    assert len(found) == 51 and set(found) == wanted
    assert len(halves["no_context"]) == 51
    assert {row["context"] for row in halves["no_context"]} == {""}


@pytest.mark.parametrize("page", ["docs/fade.md", "docs/study.md", "README.md"])
def test_the_losses_on_the_pages_are_those_printed(page: str) -> None:
    done = script("losses.py", SEARCH / "held_out.jsonl.gz")
    assert done.returncode == 0, done.stderr
    printed: dict[str, dict[str, float]] = {}
    for part in re.split(r"\n(?=[0-9.]+ kept)", done.stdout)[1:]:
        share = f"{float(part.split()[0]):.0%}"
        for line in part.splitlines():
            cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
            if len(cells) > 10 and re.fullmatch(r"[0-9.]+", cells[-2]):
                printed.setdefault(share, {})[cells[0]] = cells[-2]
    names = {
        "Fade": "rows-variant",
        "LaProx": "laprox",
        "CriticalAda-KV": "criticaladakv",
        "TOVA": "tova",
    }
    lines = (ROOT / page).read_text("utf-8").splitlines()
    head = next(n for n, line in enumerate(lines) if all(name in line for name in names))
    titles = [cell.strip() for cell in lines[head].strip("|").split("|")]
    for line in lines[head + 2 : head + 5]:
        share, *cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        for title, cell in zip(titles[1:], cells):
            if title in names:
                assert cell == printed[share][names[title]], (share, title)


def test_settings_that_were_stopped_compare_on_what_they_share(tmp_path) -> None:
    lines = gzip.decompress((UNSEEN / "scores.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    stopped = next(row for row in rows if row["settings"]["policy"]["name"] == "snapkv")
    task, last = stopped["task"], stopped["ids"].pop()
    for name in ("scores", "prompt_tokens"):
        stopped[name].pop()
    cut, all_cut = tmp_path / "cut.jsonl", tmp_path / "all.jsonl"
    cut.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        if row["task"] == task and row["ids"][-1] == last:
            for name in ("ids", "scores", "prompt_tokens"):
                row[name].pop()
    all_cut.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = script("losses.py", cut, "--reference", "kvzip")
    assert refused.returncode == 2 and "have not all the same examples" in refused.stderr
    shared, plain = (
        script("losses.py", path, "--reference", "kvzip", *flags)
        for path, flags in ((cut, ["--shared"]), (all_cut, []))
    )
    assert shared.returncode == plain.returncode == 0, shared.stderr + plain.stderr
    assert shared.stdout == plain.stdout and "| kvzip |" in plain.stdout


def test_an_unknown_reference_is_named() -> None:
    done = script("losses.py", SEARCH / "held_out.jsonl.gz", "--reference", "nothing")
    assert done.returncode == 2 and "no setting is called 'nothing'" in done.stderr
    assert "Traceback" not in done.stderr
