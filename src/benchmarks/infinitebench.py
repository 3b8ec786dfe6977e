"""The tasks as data, and what a model is asked for each.

Prompts, labels and numbers of new tokens are those that NACL's release uses for Llama 3 on ∞Bench.
The last four tasks are this project's own: harder forms of retrieval, built by ``synthetic``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

from benchmarks import metrics
from benchmarks.metrics import Label
from kvevict.errors import InputError

if TYPE_CHECKING:
    from benchmarks.grading import Example

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
class Task:
    """One benchmark task.

    ``template`` has the fields ``{context}`` (once), ``{input}``, ``{option_A}`` to ``{option_D}``
    and the named groups of ``input_pattern``, whose first match in the input is lower-cased.
    ``examples`` is the number of lines of the published file; 0 where nothing is published.
    """

    name: str
    table_name: str
    examples: int
    max_new_tokens: int
    metric: Callable[[str, Label], float]
    template: str
    input_pattern: str = ""

    @property
    def file(self) -> str:
        """File name of the examples, below the data directory."""
        return f"{self.name}.jsonl"

    @property
    def has_options(self) -> bool:
        return "{option_A}" in self.template

    @property
    def needs_input(self) -> bool:
        return bool(self.input_pattern) or "{input}" in self.template


_ALL_TASKS = (
    Task(
        "passkey",
        "Retrieve.PassKey",
        590,
        6,
        metrics.first_integer,
        HIDDEN + "Find it and memorize it. I will quiz you about the important information."
        "\n\n{context}\n\n{input}\n\nThe pass key is",
    ),
    Task(
        "number_string",
        "Retrieve.Number",
        590,
        12,
        metrics.first_integer,
        HIDDEN + "Find it. I will quiz you about the important information there."
        "\n\n{context}\n\n{input}\n\nThe sequence of digits is",
    ),
    Task("kv_retrieval", "Retrieve.KV", 500, 50, metrics.contains_word, JSON_LOOKUP),
    Task(
        "longbook_sum_eng",
        "En.Sum",
        103,
        1200,
        metrics.rouge_lsum,
        "Summarize the book below.\n\n{context}\n\nSummary:",
    ),
    Task(
        "longbook_qa_eng",
        "En.QA",
        351,
        40,
        metrics.token_f1,
        "Read the book and answer the question. Be very concise in your answer."
        "\n\n{context}\n\nQuestion: {input}\nAnswer:",
    ),
    Task(
        "longbook_choice_eng",
        "En.MC",
        229,
        40,
        metrics.choice,
        "Read the book and answer the question.\n\n{context}\n\nQuestion: {input}\n"
        + OPTION_LINES
        + "\n\nThe letter of the correct answer is",
    ),
    Task(
        "longdialogue_qa_eng",
        "En.Dia",
        200,
        40,
        metrics.contains_name,
        "Below is a dialogue script where one random occurrence of a character name is replaced "
        'with "$$MASK$$", and you should try to guess who that character is.'
        "\n\n{context}\n\nThe name that has been replaced with $$MASK$$ is likely",
    ),
    Task(
        "longbook_qa_chn",
        "Zh.QA",
        189,
        40,
        metrics.character_f1,
        "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{input}\n答案：",
    ),
    Task(
        "code_debug",
        "Code.Debug",
        394,
        5,
        metrics.debug_choice,
        "Following is a Python code where exactly one of the functions/methods has a deliberate "
        "error that makes it crash.\n\n{context}\n\nOptions:\n"
        + OPTION_LINES
        + "\n\nThe correct option is:",
    ),
    Task(
        "code_run",
        "Code.Run",
        400,
        5,
        metrics.last_integer,
        "There is a function called {func} in the following Python code.\n\n{context}\n\n"
        "Please compute the exact value of {func_call}. The value of {func_call} is",
        r"(?P<func_call>(?P<func>func_[0-9]+)\(-?[0-9]+\))",
    ),
    Task(
        "math_calc",
        "Math.Calc",
        50,
        30000,
        metrics.leading_values,
        "Let us calculate the intermediate values of an expression."
        "\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]"
        "\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]"
        "\n\nExpression: {context}\nValues:",
    ),
    Task(
        "math_find",
        "Math.Find",
        350,
        3,
        metrics.first_number,
        "What is {target} in the following list?\n\n{context}\n\n{input}",
        "(?P<target>The .+) of",
    ),
    Task("needle", "Needle", 0, 12, metrics.contains_tokens, READ_AND_ANSWER),
    Task("multi_needle", "MultiNeedle", 0, 12, metrics.contains_tokens, READ_AND_ANSWER),
    Task("variable_tracking", "VarTracking", 0, 12, metrics.contains_tokens, READ_AND_ANSWER),
    Task("kv_confusable", "KV.Confusable", 0, 50, metrics.contains_word, JSON_LOOKUP),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL_TASKS}
ALIASES = {"longbook_sum_qa": "longbook_sum_eng"}
#: What ``--task all`` runs: the published tasks but math_calc, whose answers take 30,000 tokens.
RELEASE_TASKS = tuple(name for name, task in TASKS.items() if task.examples and name != "math_calc")


def resolve(spec: str, offered: Iterable[str] = tuple(TASKS)) -> list[Task]:
    """The tasks that ``--task`` names: ``all``, a name, or several joined by commas.

    Each task comes once, in the order given. Raises ``InputError`` for a name that is not a task;
    it lists those ``offered``.
    """
    names: list[str] = []
    for part in spec.split(","):
        name = part.strip()
        names += RELEASE_TASKS if name == "all" else [ALIASES.get(name, name)]
    for name in names:
        if name not in TASKS:
            raise InputError(f"unknown task {name!r}; choose from all, {', '.join(offered)}")
    return [TASKS[name] for name in dict.fromkeys(names)]


def prompt(task: Task, example: Example) -> str:
    """What the model reads for this example: everything, before truncation."""
    return "".join(split_prompt(task, example))


def split_prompt(task: Task, example: Example) -> tuple[str, str]:
    """The prompt in two parts: up to and with the context, and the question behind it.

    For compressing a context before its question is known. Code.Run and Math.Find name what they
    ask for before the context too; the benchmark's template has it so.
    """
    head, _, tail = task.template.partition("{context}")
    values = _template_values(task, example.fields)
    return head.format(**values) + example.fields["context"], tail.format(**values)


def label(task: Task, example: Example) -> Label:
    """What a prediction is graded against: the answer; for choices ``[text, letter]``."""
    answer = example.fields["answer"]
    if not task.has_options:
        return answer
    if isinstance(answer, list) and len(answer) == 2 and answer[1] in OPTION_LETTERS:
        return answer
    text = answer[0] if isinstance(answer, list) else answer
    return [text, OPTION_LETTERS[example.fields["options"].index(text)]]


def score(task: Task, prediction: str, label: Label, model_name: str = "") -> float:
    """The score of one prediction, 0 to 1. Raises ``InputError`` for a label of the wrong kind."""
    if model_name == "gpt4" and task.name == "math_calc":
        prediction = metrics.without_first_number(prediction)
    return float(task.metric(prediction, label))


def _template_values(task: Task, fields: Mapping[str, Any]) -> dict[str, str]:
    values = {"input": fields.get("input", "")}
    if task.has_options:
        letters = zip(OPTION_LETTERS, fields["options"])
        values.update({f"option_{letter}": text for letter, text in letters})
    if task.input_pattern:
        found = re.search(task.input_pattern, fields["input"])
        values.update({name: text.lower() for name, text in found.groupdict().items()})
    return values
