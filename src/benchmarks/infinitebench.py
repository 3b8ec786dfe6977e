"""∞Bench (Zhang et al., ACL 2024): the tasks as data, and what a model is asked for each.

Prompts, labels and numbers of new tokens are those that NACL's release uses for Llama 3 on ∞Bench.
The last four tasks are this project's own: harder forms of retrieval, built by ``synthetic``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from benchmarks import infinitebench_metrics as metrics
from benchmarks.benchmark import Benchmark, Fields, Prompt, Task, by_name

OPTION_LETTERS = ("A", "B", "C", "D")
OPTION_LINES = "\n".join(f"{letter}. {{option_{letter}}}" for letter in OPTION_LETTERS)
HIDDEN = "There is an important info hidden inside a lot of irrelevant text. "
JSON_LOOKUP = (
    "Extract the value corresponding to the specified key in the JSON object below."
    "\n\n{context}\n\n{input}"
)
READ_AND_ANSWER = (
    "Read the text and answer the question.\n\n{context}\n\nQuestion: {input}\nAnswer:"
)


@dataclass(frozen=True)
class InfiniteBenchTask(Task):
    """A task of ∞Bench.

    Its template may have the fields ``{option_A}`` to ``{option_D}`` too, and the named groups of
    ``input_pattern``, whose first match in the input is lower-cased.
    """

    input_pattern: str = ""

    @property
    def has_options(self) -> bool:
        """Whether four options are given, one of which is right."""
        return "{option_A}" in self.template

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Some published files call the context ``content``."""
        if "context" not in row and "content" in row:
            row["context"] = row.pop("content")
        return row

    def values(self, fields: Fields) -> dict[str, str]:
        """The input, the options by their letters, and what the pattern finds in the input."""
        values = {"input": fields.get("input", "")}
        if self.has_options:
            letters = zip(OPTION_LETTERS, fields["options"])
            values.update({f"option_{letter}": text for letter, text in letters})
        if self.input_pattern:
            found = re.search(self.input_pattern, fields["input"])
            values.update({name: text.lower() for name, text in found.groupdict().items()})
        return values

    def prompt(self, fields: Fields) -> Prompt:
        """In NFC, as the benchmark has all texts."""
        return Prompt(*(normalize("NFC", part) for part in super().prompt(fields)))

    def reference(self, fields: Fields) -> dict[str, Any]:
        """The answer; for choices ``[text, letter]``."""
        answer = fields["answer"]
        if not self.has_options or _is_pair(answer):
            return {"ground_truth": answer}
        text = answer[0] if isinstance(answer, list) else answer
        return {"ground_truth": [text, OPTION_LETTERS[fields["options"].index(text)]]}

    def score(self, prediction: str, reference: Fields, model_name: str = "") -> float:
        """By the task's metric; GPT-4's answers to Math.Calc have a rule of their own."""
        if model_name == "gpt4" and self.name == "math_calc":
            prediction = metrics.without_first_number(prediction)
        return super().score(prediction, reference)

    def fault(self, fields: Fields) -> str | None:
        """Also options, and an answer that the benchmark's scorer can grade."""
        needed = ["context", "answer"]
        needed += ["input"] * (bool(self.input_pattern) or "{input}" in self.template)
        needed += ["options"] * self.has_options
        for name in needed:
            if name not in fields:
                return f'has no "{name}"'
        for name in {"context", "input"}.intersection(needed):
            if not isinstance(fields[name], str):
                return f'has a "{name}" that is not a text'
        if self.has_options:
            return _option_fault(fields["options"], fields["answer"])
        if self.input_pattern and not re.search(self.input_pattern, fields["input"]):
            return f'has an "input" that does not say what {self.name} asks for'
        return None


def _is_pair(answer: Any) -> bool:
    return (
        isinstance(answer, list)
        and len(answer) == 2
        and isinstance(answer[0], str)
        and answer[1] in OPTION_LETTERS
    )


def _option_fault(options: Any, answer: Any) -> str | None:
    count = len(OPTION_LETTERS)
    if not isinstance(options, list) or len(options) != count:
        return f'has no list of {count} "options"'
    if not all(isinstance(option, str) for option in options):
        return 'has "options" that are not texts'
    if _is_pair(answer):
        return None
    given = answer if isinstance(answer, list) else [answer]
    if len(given) != 1 or given[0] not in options:
        return 'has an "answer" that is none of its "options"'
    return None


_ALL_TASKS = (
    InfiniteBenchTask(
        "passkey",
        "Retrieve.PassKey",
        6,
        HIDDEN + "Find it and memorize it. I will quiz you about the important information."
        "\n\n{context}\n\n{input}\n\nThe pass key is",
        metrics.first_integer,
        examples=590,
    ),
    InfiniteBenchTask(
        "number_string",
        "Retrieve.Number",
        12,
        HIDDEN + "Find it. I will quiz you about the important information there."
        "\n\n{context}\n\n{input}\n\nThe sequence of digits is",
        metrics.first_integer,
        examples=590,
    ),
    InfiniteBenchTask(
        "kv_retrieval",
        "Retrieve.KV",
        50,
        JSON_LOOKUP,
        metrics.contains_word,
        examples=500,
    ),
    InfiniteBenchTask(
        "longbook_sum_eng",
        "En.Sum",
        1200,
        "Summarize the book below.\n\n{context}\n\nSummary:",
        metrics.rouge_lsum,
        examples=103,
    ),
    InfiniteBenchTask(
        "longbook_qa_eng",
        "En.QA",
        40,
        "Read the book and answer the question. Be very concise in your answer."
        "\n\n{context}\n\nQuestion: {input}\nAnswer:",
        metrics.token_f1,
        examples=351,
    ),
    InfiniteBenchTask(
        "longbook_choice_eng",
        "En.MC",
        40,
        "Read the book and answer the question.\n\n{context}\n\nQuestion: {input}\n"
        + OPTION_LINES
        + "\n\nThe letter of the correct answer is",
        metrics.choice,
        examples=229,
    ),
    InfiniteBenchTask(
        "longdialogue_qa_eng",
        "En.Dia",
        40,
        "Below is a dialogue script where one random occurrence of a character name is replaced "
        'with "$$MASK$$", and you should try to guess who that character is.'
        "\n\n{context}\n\nThe name that has been replaced with $$MASK$$ is likely",
        metrics.contains_name,
        examples=200,
    ),
    InfiniteBenchTask(
        "longbook_qa_chn",
        "Zh.QA",
        40,
        "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{input}\n答案：",
        metrics.character_f1,
        examples=189,
    ),
    InfiniteBenchTask(
        "code_debug",
        "Code.Debug",
        5,
        "Following is a Python code where exactly one of the functions/methods has a deliberate "
        "error that makes it crash.\n\n{context}\n\nOptions:\n"
        + OPTION_LINES
        + "\n\nThe correct option is:",
        metrics.debug_choice,
        examples=394,
    ),
    InfiniteBenchTask(
        "code_run",
        "Code.Run",
        5,
        "There is a function called {func} in the following Python code.\n\n{context}\n\n"
        "Please compute the exact value of {func_call}. The value of {func_call} is",
        metrics.last_integer,
        examples=400,
        input_pattern=r"(?P<func_call>(?P<func>func_[0-9]+)\(-?[0-9]+\))",
    ),
    InfiniteBenchTask(
        "math_calc",
        "Math.Calc",
        30000,
        "Let us calculate the intermediate values of an expression."
        "\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]"
        "\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]"
        "\n\nExpression: {context}\nValues:",
        metrics.leading_values,
        examples=50,
    ),
    InfiniteBenchTask(
        "math_find",
        "Math.Find",
        3,
        "What is {target} in the following list?\n\n{context}\n\n{input}",
        metrics.first_number,
        examples=350,
        input_pattern="(?P<target>The .+) of",
    ),
    InfiniteBenchTask(
        "needle",
        "Needle",
        12,
        READ_AND_ANSWER,
        metrics.contains_tokens,
    ),
    InfiniteBenchTask(
        "multi_needle",
        "MultiNeedle",
        12,
        READ_AND_ANSWER,
        metrics.contains_tokens,
    ),
    InfiniteBenchTask(
        "variable_tracking",
        "VarTracking",
        12,
        READ_AND_ANSWER,
        metrics.contains_tokens,
    ),
    InfiniteBenchTask(
        "kv_confusable",
        "KV.Confusable",
        50,
        JSON_LOOKUP,
        metrics.contains_word,
    ),
)
TASKS = by_name(_ALL_TASKS)
#: What ``--task all`` runs: the published tasks but math_calc, whose answers take 30,000 tokens.
RELEASE_TASKS = tuple(name for name, task in TASKS.items() if task.examples and name != "math_calc")

BENCHMARKS = (
    Benchmark(
        "infinitebench",
        "∞Bench",
        TASKS,
        groups={"all": RELEASE_TASKS},
        # As in NACL's release, with and without the task that eviction cannot do.
        averages={
            "∞Bench average": RELEASE_TASKS,
            "without KV": tuple(name for name in RELEASE_TASKS if name != "kv_retrieval"),
        },
        how_to_get="scripts/download_dataset.sh fetches ∞Bench, "
        "data/construct_synthetic_dataset.py builds synthetic examples",
        aliases={"longbook_sum_qa": "longbook_sum_eng"},
        max_length=127 * 1024,
        min_eviction_seqlen=2048,
    ),
)
