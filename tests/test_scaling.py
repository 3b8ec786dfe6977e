"""The tables of docs/scaling.md are what the script prints, and the script is right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables() -> str:
    script = [sys.executable, str(ROOT / "scripts" / "scaling.py")]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout


def test_the_page_shows_what_the_script_prints(tables):
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    shown = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    assert "\n".join(shown) == tables


def test_some_rows_by_hand(tables):
    rows = {line.split(" | ")[0]: line for line in tables.splitlines()}
    # A token: 2 (key, value) · 80 layers · 8 heads · 128 · 2 bytes = 320 KiB.
    assert rows["| cache, full"].endswith(" | 40 GiB | 320 GiB |")
    # One head, at most its N entries of a layer, 512 bytes each: 64 MiB and 512 MiB on top.
    peak = rows["| of one rank, 5% kept, at the peak of the prefill"]
    assert peak.endswith(" | 320 MiB | 2.5 GiB |")
    # 68.45 G weights in the layers, two operations a weight and token.
    assert rows["| prefill, linear layers"].endswith(" | 17.9 PFLOP | 143.6 PFLOP |")
    # 2 · N · 8192 · 2 bytes in each of 80 layers.
    assert rows["| tensor parallelism itself"].endswith(" | 320 GiB | 2560 GiB |")
