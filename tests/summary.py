"""The closing lines of scripts/test.sh: what ran where, and whether each test ran somewhere.

    python tests/summary.py [--all] REPORT.xml…

A report is pytest's JUnit XML of one environment and is named after it. With ``--all``, a test that
was skipped in every environment is a failure, unless a marker says what it needs (conftest.py).
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STATES = ("failed", "passed", "skipped")  # what counts of a test that was in several environments
NEEDS = {"gpu": "for a GPU only", "published": "for published files only"}


class Outcome(NamedTuple):
    """One of ``STATES``; why, and what was missing, of a test that was skipped."""

    state: str
    reason: str
    needs: str


def outcomes(report: Path) -> Iterator[tuple[str, Outcome]]:
    """Every test of one environment; a module skipped as a whole counts as one."""
    for case in ET.parse(report).iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        skipped = case.find("skipped")
        state = "passed" if skipped is None else "skipped"
        if case.find("failure") is not None or case.find("error") is not None:
            state = "failed"
        reason = "" if skipped is None else skipped.get("message", "")
        needs = [p.get("value") for p in case.iter("property") if p.get("name") == "needs"]
        yield name, Outcome(state, reason, *needs[:1] or [""])


def main(arguments: list[str]) -> int:
    everything = "--all" in arguments
    tests: dict[str, Outcome] = {}
    for report in (Path(argument) for argument in arguments if argument != "--all"):
        found = dict(outcomes(report))
        counts = Counter(outcome.state for outcome in found.values())
        print(f"{report.stem}: " + ", ".join(f"{counts[s]} {s}" for s in reversed(STATES)))
        for name, outcome in found.items():
            known = tests.get(name, outcome)
            tests[name] = min(known, outcome, key=lambda o: STATES.index(o.state))

    # A module that one environment skipped as a whole may have run in another, test by test.
    modules = {name.partition("::")[0] for name in tests if "::" in name}
    tests = {name: outcome for name, outcome in tests.items() if name not in modules}
    nowhere = {
        name: outcome.reason
        for name, outcome in tests.items()
        if outcome.state == "skipped" and not outcome.needs
    }
    for name, reason in nowhere.items() if everything else ():
        print(f"ran nowhere: {name} ({reason})")
    states = Counter(outcome.state for outcome in tests.values())
    needs = Counter(outcome.needs for outcome in tests.values() if outcome.state == "skipped")
    failed = states["failed"] + (len(nowhere) if everything else 0)
    closing = [f"{states['passed']} passed", f"{failed} failed"]
    closing += [f"{needs[marker]} {words}" for marker, words in NEEDS.items() if needs[marker]]
    if nowhere and not everything:
        closing.append(f"{len(nowhere)} for scripts/test.sh --all")
    print(", ".join(closing))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
