"""LongBench and LongBench-E (Bai et al., ACL 2024, arXiv 2308.14508): their data sets as tasks.

The prompts are the benchmark's own, in ``longbench_prompts.json``. Those of few-shot learning and
of code go without a chat template, for the answer continues them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any, Callable

from benchmarks import longbench_metrics as metrics
from benchmarks.benchmark import Benchmark, Fields, Figures, Task, by_name
from kvevict.errors import InputError

PROMPTS = json.loads(Path(__file__).with_name("longbench_prompts.json").read_text("utf-8"))
#: LongBench-E's classes of length, and how many words each ends before.
LENGTH_CLASSES = {"0-4k": 4000, "4-8k": 8000, "8k+": inf}


@dataclass(frozen=True)
class LongBenchTask(Task):
    """A data set of LongBench.

    Attributes:
        metric: score of a prediction, given one of the answers; the best of them counts.
        first_line: only the prediction's first line is scored.
        classes: the metric is given ``all_classes`` too.
        code_similarity: one of ``CODE_SIMILARITIES``, for the metric that measures it.
    """

    metric: Callable[..., float]
    first_line: bool = False
    classes: bool = False
    code_similarity: str = ""

    @property
    def note(self) -> str:
        """What has measured the similarity of code."""
        name = self.code_similarity
        return name and f"Code is scored by fuzzywuzzy's ratio, as computed with {name}."

    def reference(self, fields: Fields) -> dict[str, Any]:
        """What the benchmark's own prediction files hold."""
        return {name: fields[name] for name in ("answers", "all_classes", "length")}

    def first_answer(self, fields: Fields) -> str | None:
        """The first of the file's answers, if it is more than white space."""
        return next((one for one in fields["answers"][:1] if one.strip()), None)

    def score(self, prediction: str, reference: Fields, model_name: str = "") -> float:
        """The best score over the answers; 0 where there is none."""
        if self.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        settings: dict[str, Any] = {}
        if self.classes:
            settings["classes"] = _texts(reference, "all_classes")
        if self.code_similarity:
            settings["backend"] = self.code_similarity
        answers = _texts(reference, "answers")
        return max((self.metric(prediction, one, **settings) for one in answers), default=0.0)

    def fault(self, fields: Fields) -> str | None:
        """Also what :meth:`reference` keeps."""
        for name in ("answers", "all_classes", "length"):
            if name not in fields:
                return f'has no "{name}"'
        return super().fault(fields)


class LongBenchETask(LongBenchTask):
    """A data set of LongBench-E: the same as in LongBench, with examples of its own."""

    @property
    def file(self) -> str:
        """File name of the examples."""
        return f"{self.name}_e.jsonl"

    def score(self, prediction: str, reference: Fields, model_name: str = "") -> float:
        """As in LongBench; the length has to be there."""
        if type(reference["length"]) is not int:
            raise InputError('"length" is not an integer')
        return super().score(prediction, reference)


class LongBench(Benchmark):
    """LongBench or LongBench-E."""

    def longest_prompt(self, positions: int) -> int:
        """3,500 tokens for a 4K model, 31,500 for 32K: the benchmark counts in thousands."""
        return 1000 * (positions // 1024) - 500 if positions >= 1024 else positions


def mean_by_length(scores: Sequence[float], references: Sequence[Fields]) -> Figures:
    """LongBench-E's figures: the mean score of each class of length; None for an empty one."""
    of_class: dict[str, list[float]] = {name: [] for name in LENGTH_CLASSES}
    for score, reference in zip(scores, references):
        name = next(n for n, end in LENGTH_CLASSES.items() if reference["length"] < end)
        of_class[name].append(score)
    return {name: mean(own) if own else None for name, own in of_class.items()}


def with_code_similarity(benchmark: Benchmark, name: str) -> Benchmark:
    """The benchmark with another of ``CODE_SIMILARITIES``, if it scores code by one."""
    if not isinstance(benchmark, LongBench):
        return benchmark
    code = {task: replace(benchmark.tasks[task], code_similarity=name) for task in GROUPS["code"]}
    return replace(benchmark, tasks={**benchmark.tasks, **code})


def _texts(reference: Fields, name: str) -> list[str]:
    texts = reference[name]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f'"{name}" is not a list of texts')
    return texts


def _task(
    name: str,
    title: str,
    max_new_tokens: int,
    metric: Callable[..., float],
    chat: bool = True,
    examples: int = 200,
    **rules: Any,
) -> LongBenchTask:
    rules = {"chat": chat, "examples": examples, **rules}
    return LongBenchTask(name, title, max_new_tokens, PROMPTS[name], metric, **rules)


CLASSES = {"chat": False, "first_line": True, "classes": True}
CODE = {"chat": False, "examples": 500, "code_similarity": "levenshtein"}
TASKS = by_name(
    (
        _task("narrativeqa", "NarrativeQA", 128, metrics.qa_f1),
        _task("qasper", "Qasper", 128, metrics.qa_f1),
        _task("multifieldqa_en", "MultiFieldQA-en", 64, metrics.qa_f1, examples=150),
        _task("multifieldqa_zh", "MultiFieldQA-zh", 64, metrics.qa_f1_zh),
        _task("hotpotqa", "HotpotQA", 32, metrics.qa_f1),
        _task("2wikimqa", "2WikiMQA", 32, metrics.qa_f1),
        _task("musique", "MuSiQue", 32, metrics.qa_f1),
        _task("dureader", "DuReader", 128, metrics.rouge_l_zh),
        _task("gov_report", "GovReport", 512, metrics.rouge_l),
        _task("qmsum", "QMSum", 512, metrics.rouge_l),
        _task("multi_news", "MultiNews", 512, metrics.rouge_l),
        _task("vcsum", "VCSUM", 512, metrics.rouge_l_zh),
        _task("trec", "TREC", 64, metrics.classification, **CLASSES),
        _task("triviaqa", "TriviaQA", 32, metrics.qa_f1, chat=False, first_line=True),
        _task("samsum", "SAMSum", 128, metrics.rouge_l, chat=False, first_line=True, stop="\n"),
        _task("lsht", "LSHT", 64, metrics.classification, **CLASSES),
        _task("passage_count", "PassageCount", 32, metrics.count),
        _task("passage_retrieval_en", "PassageRetrieval-en", 32, metrics.retrieval),
        _task("passage_retrieval_zh", "PassageRetrieval-zh", 32, metrics.retrieval_zh),
        _task("lcc", "LCC", 64, metrics.code_similarity, **CODE),
        _task("repobench-p", "RepoBench-P", 64, metrics.code_similarity, **CODE),
    )
)
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
GROUPS = {
    "all": tuple(TASKS),
    "english": tuple(name for name in TASKS if name not in CHINESE),
    "single_doc_qa": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "multi_doc_qa": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "summarization": ("gov_report", "qmsum", "multi_news", "vcsum"),
    "few_shot": ("trec", "triviaqa", "samsum", "lsht"),
    "synthetic": ("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    "code": ("lcc", "repobench-p"),
}
AVERAGES = {
    "Single-doc QA": GROUPS["single_doc_qa"],
    "Multi-doc QA": GROUPS["multi_doc_qa"],
    "Summarization": GROUPS["summarization"],
    "Few-shot": GROUPS["few_shot"],
    "Synthetic": GROUPS["synthetic"],
    "Code": GROUPS["code"],
    "English": GROUPS["english"],
}
#: LongBench-E's data sets, and the lines of their files: mostly a hundred of each class of length.
E_EXAMPLES = {
    "qasper": 224,
    "multifieldqa_en": 150,
    "hotpotqa": 300,
    "2wikimqa": 300,
    "gov_report": 300,
    "multi_news": 294,
    "trec": 300,
    "triviaqa": 300,
    "samsum": 300,
    "passage_count": 300,
    "passage_retrieval_en": 300,
    "lcc": 300,
    "repobench-p": 300,
}
E_TASKS = by_name(
    LongBenchETask(**{**vars(TASKS[name]), "examples": examples})
    for name, examples in E_EXAMPLES.items()
)


def _of_e(groups: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {title: tuple(n for n in names if n in E_TASKS) for title, names in groups.items()}


LONGBENCH = LongBench(
    "longbench",
    "LongBench",
    TASKS,
    GROUPS,
    AVERAGES,
    how_to_get="scripts/download_dataset.sh longbench fetches it",
    folder="longbench",
    cut_as_text=True,
    scale=100,
    decimals=2,
)
LONGBENCH_E = replace(
    LONGBENCH,
    name="longbench_e",
    title="LongBench-E",
    tasks=E_TASKS,
    groups=_of_e(GROUPS),
    averages=_of_e(AVERAGES),
    summarise=mean_by_length,
)
BENCHMARKS = (LONGBENCH, LONGBENCH_E)
