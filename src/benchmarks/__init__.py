"""∞Bench: its tasks, their data, prompts and scores, and generators of synthetic examples."""

from benchmarks.grading import (
    Example,
    Grade,
    Prediction,
    grade,
    iterate_examples,
    normalise,
    read_examples,
    read_predictions,
    truncate,
)
from benchmarks.infinitebench import (
    RELEASE_TASKS,
    TASKS,
    Task,
    label,
    prompt,
    resolve,
    score,
    split_prompt,
)

__all__ = [
    "RELEASE_TASKS",
    "TASKS",
    "Example",
    "Grade",
    "Prediction",
    "Task",
    "grade",
    "iterate_examples",
    "label",
    "normalise",
    "prompt",
    "read_examples",
    "read_predictions",
    "resolve",
    "score",
    "split_prompt",
    "truncate",
]
