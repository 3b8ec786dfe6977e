"""∞Bench: its tasks, their data, prompts and scores, and generators of synthetic examples."""

from tasks.data import (
    Example,
    Prediction,
    iterate_examples,
    normalise,
    read_examples,
    read_predictions,
    truncate,
)
from tasks.prompts import (
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
    "Prediction",
    "Task",
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
