"""The closing lines of scripts/test.sh: what ran where, and whether each test ran somewhere.

    python tests/summary.py [--all] REPORT.xml…

A report is pytest's JUnit XML of one environment and is named after it. With ``--all``, a test that
was skipped in every environment is a failure, unless it is marked ``gpu``.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """``state`` is passed, failed or skipped; ``reason`` says why it was skipped."""

    state: str
    reason: str
    gpu: bool


def outcomes(report: Path) -> Iterator[tuple[str, Outcome]]:
    """Every test of one environment; a module skipped as a whole counts as one."""
    for case in ET.parse(report).iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        skipped = case.find("skipped")
        state = "passed" if skipped is None else "skipped"
        if case.find("failure") is not None or case.find("error") is not None:
            state = "failed"
        gpu = any(p.get("name") == "gpu" for p in case.iter("property"))
        yield name, Outcome(state, "" if skipped is None else skipped.get("message", ""), gpu)


def best(found: list[Outcome]) -> Outcome:
    """A failure anywhere counts, then a pass anywhere."""
    return min(found, key=lambda outcome: ("failed", "passed", "skipped").index(outcome.state))


def main(arguments: list[str]) -> int:
    reports = [Path(argument) for argument in arguments if argument != "--all"]
    tests: dict[str, list[Outcome]] = {}
    for report in reports:
        states = []
        for name, outcome in outcomes(report):
            tests.setdefault(name, []).append(outcome)
            states.append(outcome.state)
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "skipped"))
        print(f"{report.stem}: {counts}")

    total = {name: best(found) for name, found in tests.items()}
    modules = {name.partition("::")[0] for name in total if "::" in name}
    nowhere = {  # a module skipped in one environment may have run, test by test, in another
        name: outcome
        for name, outcome in total.items()
        if outcome.state == "skipped" and not outcome.gpu and name not in modules
    }
    if "--all" in arguments:
        for name, outcome in nowhere.items():
            print(f"ran nowhere: {name} ({outcome.reason})")
    elif nowhere:
        print(f"{len(nowhere)} need what is not here: bash scripts/test.sh --all")
    states = [outcome.state for outcome in total.values()]
    failed = states.count("failed") + ("--all" in arguments) * len(nowhere)
    gpu = sum(outcome.gpu and outcome.state == "skipped" for outcome in total.values())
    print(f"{states.count('passed')} passed, {failed} failed, {gpu} for a GPU only")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
