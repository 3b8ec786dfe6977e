"""RULER (Hsieh et al., COLM 2024, arXiv 2404.06654): thirteen tasks, made to any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.benchmark import Benchmark, Fields, Prompt, Task, by_name
from benchmarks.ruler.data import make
from benchmarks.ruler.samples import new_tokens


def share_found(prediction: str, answers: Sequence[str]) -> float:
    """The share of ``answers`` that occur in the prediction, letter case aside."""
    found = prediction.lower()
    return sum(answer.lower() in found for answer in answers) / len(answers)


def any_found(prediction: str, answers: Sequence[str]) -> float:
    """1 if any of ``answers`` occurs in the prediction, letter case aside, else 0."""
    return float(share_found(prediction, answers) > 0)


@dataclass(frozen=True)
class RulerTask(Task):
    """A task whose data hold the prompt in three parts, and ``outputs``: all that is to be said."""

    def prompt(self, fields: Fields) -> Prompt:
        """As it was made."""
        return Prompt(fields["context"], fields["question"], fields["answer_prefix"])

    def reference(self, fields: Fields) -> dict[str, Any]:
        """The answers."""
        return {"ground_truth": fields["outputs"]}

    def fault(self, fields: Fields) -> str | None:
        """What is missing."""
        outputs = fields.get("outputs")
        if not isinstance(outputs, list) or not outputs:
            return 'has no list of "outputs"'
        if not all(isinstance(output, str) for output in outputs):
            return 'has "outputs" that are not texts'
        return super().fault(fields)


TITLES = {
    "niah_single_1": "NIAH S1",
    "niah_single_2": "NIAH S2",
    "niah_single_3": "NIAH S3",
    "niah_multikey_1": "NIAH MK1",
    "niah_multikey_2": "NIAH MK2",
    "niah_multikey_3": "NIAH MK3",
    "niah_multivalue": "NIAH MV",
    "niah_multiquery": "NIAH MQ",
    "vt": "VT",
    "cwe": "CWE",
    "fwe": "FWE",
    "qa_1": "QA SQuAD",
    "qa_2": "QA HotpotQA",
}
TASKS = by_name(
    RulerTask(
        name,
        title,
        new_tokens(name),
        "{context}{question}{answer_prefix}",
        any_found if name.startswith("qa") else share_found,
        chat=True,
    )
    for name, title in TITLES.items()
)
NIAH = tuple(name for name in TASKS if name.startswith("niah"))
BENCHMARKS = (
    Benchmark(
        "ruler",
        "RULER",
        TASKS,
        groups={"all": tuple(TASKS), "niah": NIAH, "qa": ("qa_1", "qa_2")},
        averages={"NIAH": NIAH, "Mean": tuple(TASKS)},
        how_to_get="python -m benchmarks.ruler makes it",
        folder="ruler",
        make=make,
        scale=100,
        decimals=2,
    ),
)
