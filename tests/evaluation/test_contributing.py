"""What CONTRIBUTING.md says is enough to add a method is enough."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[2]


def example() -> list[str]:
    """The file, the YAML and the test, of a method that nothing here has heard of."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.split("## Adding a method")[1].split("\n## ")[0]
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", section, flags=re.DOTALL)
    return [block.replace("KeyNorm", "Fresh").replace("keynorm", "fresh") for block in blocks]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout with the example in it."""
    root = tmp_path_factory.mktemp("checkout")
    for part in ("src", "configs", "tests/methods"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    places = ("src/kvevict/methods/fresh.py", "configs/fresh.yaml", "tests/methods/test_fresh.py")
    for place, block in zip(places, example()):
        (root / place).write_text(block, "utf-8")
    return root


def run(checkout: Path, *command: str, where: str = ".") -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=checkout / where,
        env={**os.environ, "PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{checkout}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_the_method_that_is_here() -> None:
    for place, block in zip(
        ("src/kvevict/methods/keynorm.py", "configs/keynorm.yaml", "tests/methods/test_keynorm.py"),
        example(),
    ):
        here = (ROOT / place).read_text("utf-8")
        assert block == here.replace("KeyNorm", "Fresh").replace("keynorm", "fresh")


def test_its_own_test_and_those_over_all_methods_take_it_in(checkout: Path) -> None:
    tests = ["tests/methods/test_fresh.py", "tests/methods/test_build.py"]
    done = run(
        checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "fresh or every"
    )
    assert re.search(r"^[4-9]\d* passed", done.splitlines()[-1]), done


def test_it_is_built_evaluated_and_drawn_by_its_name(checkout: Path, flags, tmp_path) -> None:
    own = ["--method=snapkv,fresh", "--keep_ratio=0.3", "--task=passkey", "--stop_idx=2"]
    run(checkout, "eval_llama3.py", *flags, *own, where="src")
    (directory,) = (tmp_path / "out").glob("*fresh-0.3_*")
    for line in (directory / "stats_passkey.jsonl").read_text().splitlines():
        row = json.loads(line)
        entries = row["prompt_tokens"] * 3 // 10 * tiny.KV_HEADS * tiny.LAYERS
        assert row["cache_entries"] == entries
    code = (
        "from kvevict.methods import METHODS, build\n"
        "from reporting.style import display, look\n"
        "assert build('snapkv', scorer='fresh') and build('fresh', allocator='layer_shared')\n"
        "one, other = look(['fresh', 'snapkv']).values()\n"
        "assert one != other\n"
        "print(list(METHODS)[-1], display('fresh'))"
    )
    assert run(checkout, "-c", code).split() == ["fresh", "Fresh"]
    assert "fresh" in run(checkout, "eval_llama3.py", "--help", where="src")
