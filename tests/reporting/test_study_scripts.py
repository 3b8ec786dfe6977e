"""The scripts of the search: LongBench in halves, and the losses that the pages quote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from reporting.load import read_scores

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SEARCH = DOCS / "data" / "search"


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


TITLES = {
    "Fade": "fade",
    "its first form": "rows-variant",
    "LaProx": "laprox",
    "CriticalAda-KV": "criticaladakv",
    "Ada-KV": "adakv",
    "SnapKV": "snapkv",
    "TOVA": "tova",
    "H2O": "h2o",
    "StreamingLLM": "streamingllm",
    "Random": "random",
    "KVzip": "kvzip",
    "CriticalKV": "criticalkv",
    "DefensiveKV": "defensivekv",
    "Layer-DefensiveKV": "layerdefensivekv",
    "KeyDiff": "keydiff",
    "PyramidKV": "pyramidkv",
    "Key norm": "keynorm",
    "Scissorhands": "scissorhands",
    "Expected attention": "expected_attention",
    "Expected attention, heads sharing": "expected_attention-layer_shared",
}


@pytest.mark.parametrize("page", ["docs/fade.md", "docs/study.md", "README.md"])
def test_the_losses_on_the_pages_are_those_printed(page: str) -> None:
    """Tables below a comment that names their files."""
    text = (ROOT / page).read_text("utf-8")
    tables = re.findall(r"<!-- losses.py ([^>]+) -->\n((?:\|.*\n)+)", text)
    assert tables
    for files, table in tables:
        printed = losses(*files.split())
        titles, _, *rows = [
            [cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        assert rows
        for kept, *cells in rows:
            keep = float(kept.split()[0].strip("%").replace(",", "")) / (1 + 99 * ("%" in kept))
            for title, cell in zip(titles[1:], cells):
                known = TITLES.get(title, "nacl")
                found = {own for (at, label), own in printed.items()
                         if at == keep and label.split()[0] == known}  # fmt: skip
                assert cell in found, (files, kept, title)


def test_the_means_on_the_page_are_those_of_its_scores() -> None:
    """Tables below a comment that names a file and a benchmark: a mean over tasks by method."""
    text = (DOCS / "study.md").read_text("utf-8")
    tables = re.findall(r"<!-- means (\S+) (\S+) -->\n((?:\|.*\n)+)", text)
    assert len(tables) == 4
    for file, benchmark, table in tables:
        found = means(ROOT / file, benchmark)
        (_, *shares), _, *rows = [
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()
        ]
        for title, *cells in rows:
            for share, cell in zip(shares, cells):
                if cell:
                    keep = 1.0 if title == "full cache" else float(share.strip("%")) / 100
                    assert cell.split()[0] == found[title, keep], (file, title, share)


def means(file: Path, benchmark: str) -> dict[tuple[str, float], str]:
    """By the page's title of a method, and the share kept."""
    names = {name: title for title, name in TITLES.items()} | {
        "full": "full cache",
        "nacl": "NACL",
        "nacl-paper": "NACL, its paper's shares",
    }
    tasks: dict[tuple[str, float], list[float]] = {}
    for result in read_scores(file):
        policy = result.settings["policy"]
        if result.settings["benchmark"] == benchmark and policy["name"] in names:
            title = names[policy["name"]]
            if policy["name"] == "nacl" and "question" in json.dumps(policy):
                title = "NACL, the question's tokens score"
            own = tasks.setdefault((title, policy["keep_ratio"]), [])
            own.append(mean(result.scores))
    return {key: f"{mean(own):.3f}" for key, own in tasks.items()}


def test_what_fade_was_shown_on_is_printed_so() -> None:
    """A row of the page's first table names its file, and has Fade's loss and LaProx's."""
    rows = re.findall(
        r"^\| \[.+\]\((data/.+?gz)\) \|(.+)\|$", (DOCS / "fade.md").read_text("utf-8"), re.M
    )
    assert len(rows) == 5
    for file, cells in rows:
        printed = losses(f"docs/{file}")
        shares = cells.split("|")[2:]
        for keep, cell in zip((0.2, 0.05, 0.02), shares, strict=True):
            ours, theirs = cell.replace("*", "").split(" and ")
            assert (ours.strip(), theirs.strip()) == (
                printed[keep, "fade"],
                printed[keep, "laprox"],
            )


def losses(*files: str) -> dict[tuple[float, str], str]:
    """What losses.py prints: a mean by share and setting."""
    done = script("losses.py", *(ROOT / file for file in files))
    assert done.returncode == 0, done.stderr
    found = {}
    for part in re.split(r"\n(?=[0-9.]+ kept)", done.stdout)[1:]:
        for line in part.splitlines():
            cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
            if len(cells) > 4 and re.fullmatch(r"-?[0-9.]+", cells[-2]):
                found[float(part.split()[0]), cells[0]] = cells[-2]
    return found


def test_an_unknown_reference_is_named() -> None:
    done = script("losses.py", SEARCH / "held_out.jsonl.gz", "--reference", "nothing")
    assert done.returncode == 2 and "no setting is called 'nothing'" in done.stderr
    assert "Traceback" not in done.stderr
