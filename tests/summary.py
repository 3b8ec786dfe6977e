"""What ran where: the closing lines of scripts/test.sh, and what is left for another environment.

    python tests/summary.py [--all] REPORT.xml…
    python tests/summary.py --skipped REPORT.xml

A report is pytest's JUnit XML of one environment and is named after it. With ``--all``, a test that
was skipped in every environment is a failure, unless a marker says what it needs (conftest.py).
With ``--skipped``, the files are listed in which a test was skipped for no such need.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
STATES = ("failed", "passed", "skipped")  # what counts of a test that was in several environments
NEEDS = {
    "gpu": "for a GPU only",
    "published": "for published files only",
    "builtin": "for a model that --all fetches",
}


class Outcome(NamedTuple):
    """One of ``STATES``; why, and what was missing, of a test that was skipped."""

    state: str
    reason: str = ""
    needs: str = ""

    @property
    def ran_nowhere(self) -> bool:
        return self.state == "skipped" and not self.needs


def outcomes(report: Path) -> dict[str, Outcome]:
    """The tests of one environment, as ``file::name``."""
    found = {}
    for case in ET.parse(report).iter("testcase"):
        # A file that could not be read, or was skipped as a whole, is a case without a class.
        file = (case.get("classname") or case.get("name", "")).replace(".", "/") + ".py"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = Outcome("failed")
        elif skipped is None:
            outcome = Outcome("passed")
        else:
            needs = [p.get("value") for p in case.iter("property") if p.get("name") == "needs"]
            outcome = Outcome("skipped", skipped.get("message", ""), *needs[:1])
        if case.get("classname") or outcome.state == "failed":
            found[f"{file}::{case.get('name')}"] = outcome
    return found


def together(reports: list[dict[str, Outcome]]) -> dict[str, Outcome]:
    """Every test once, with what it came to where it came furthest.

    A file that no report has a test of was skipped as a whole: pytest-xdist tells of one alone.
    """
    found: dict[str, Outcome] = {}
    for name, outcome in (item for report in reports for item in report.items()):
        found[name] = min(found.get(name, outcome), outcome, key=lambda o: STATES.index(o.state))
    files = {path.relative_to(TESTS.parent).as_posix() for path in TESTS.rglob("test_*.py")}
    for file in files - {name.partition("::")[0] for name in found}:
        found[file] = Outcome("skipped", "all of it")
    return found


def main(arguments: list[str]) -> int:
    flags = [argument for argument in arguments if argument.startswith("--")]
    for argument in arguments:
        if argument not in flags and not Path(argument).exists():
            print(f"pytest ended without a report in {Path(argument).stem}", file=sys.stderr)
            return 1
    reports = {Path(a).stem: outcomes(Path(a)) for a in arguments if a not in flags}
    tests = together(list(reports.values()))
    nowhere = {name: outcome.reason for name, outcome in tests.items() if outcome.ran_nowhere}
    if "--skipped" in flags:
        for file in sorted({name.partition("::")[0] for name in nowhere}):
            print(file)
        return 0

    for environment, report in reports.items():
        counts = Counter(outcome.state for outcome in report.values())
        print(f"{environment}: " + ", ".join(f"{counts[state]} {state}" for state in STATES[::-1]))
    states = Counter(outcome.state for outcome in tests.values())
    needs = Counter(outcome.needs for outcome in tests.values() if outcome.state == "skipped")
    failed, elsewhere = states["failed"], []
    if "--all" in flags:
        failed += len(nowhere)
        for name, reason in nowhere.items():
            print(f"ran nowhere: {name} ({reason})")
    elif nowhere:
        elsewhere = [f"{len(nowhere)} for scripts/test.sh --all"]
    closing = [f"{states['passed']} passed", f"{failed} failed"]
    closing += [f"{needs[marker]} {words}" for marker, words in NEEDS.items() if needs[marker]]
    print(", ".join(closing + elsewhere))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
