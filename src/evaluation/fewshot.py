"""Multiple choice after a few examples, by lm-evaluation-harness, one example at a time.

A task at a number of shots has one file: a line of settings, then a line for each example that has
been scored, in whatever order and by whichever process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.examples import iterate_json_lines
from kvevict import files
from kvevict.errors import InputError

# Prompts as in the harness's own files of these tasks, 0.4.13; the fields as in the local ones.
QUESTION = {"doc_to_text": "Question: {{question}}\nAnswer:"}
PROMPTS: dict[str, dict[str, Any]] = {
    "piqa": QUESTION,
    "copa": {
        "doc_to_text": "{{question.strip()[:-1]}} "
        "{{ {'cause': 'because', 'effect': 'therefore'}[relation] }}",
        "doc_to_choice": lambda doc: [f" {one[0].lower()}{one[1:]}" for one in doc["choices"]],
    },
    "openbookqa": {"doc_to_text": "question"},
    "winogrande": {  # the choices stand in the prompt, and what follows them is scored
        "doc_to_text": "label",
        "doc_to_choice": lambda doc: [
            doc["question"].partition("_")[0] + one for one in doc["choices"]
        ],
        "doc_to_target": lambda doc: doc["question"].partition("_")[2].strip(),
    },
    "arc_easy": QUESTION,
    "arc_challenge": QUESTION,
}
FIELDS = {"question": (str, "a text"), "choices": (list, "a list"), "label": (int, "a number")}
SEED = 1234  # the harness's own, for the shots


class Asked:
    """A task at a number of shots, asked of a model under several policies.

    Args:
        name: a task of the harness, or one of :data:`PROMPTS` over a local file.
        data_dir: where the file is; None for the harness's own data.
        models: of :meth:`kvevict.lm_eval.model.KVEvict.under`.
    """

    def __init__(self, name: str, shots: int, data_dir: Path | None, models: Sequence[Any]) -> None:
        from lm_eval.tasks import TaskManager

        own = _local(data_dir, name) if data_dir else name
        self._task = TaskManager(include_defaults=data_dir is None).load([own])["tasks"][name]
        self._shots, self._models = shots, models
        self.docs = self._task.eval_docs

    def score(self, index: int) -> dict[str, Any]:
        """By policy whether an example is answered right, and of how many entries what was kept.

        Its shots depend on its index alone, not on what else is scored.
        """
        doc, task = self.docs[index], self._task
        task.set_fewshot_seed(SEED + index)
        context = task.fewshot_context(doc, num_fewshot=self._shots)
        metadata = (task.config.task, index, 1)
        choices = task.construct_requests(doc=doc, ctx=context, metadata=metadata)
        before = self._counts()
        found = [model.loglikelihood(choices, disable_tqdm=True) for model in self._models]
        correct = [int(task.process_results(doc, own)["acc"]) for own in found]
        pairs = zip(self._counts(), before)
        kept = [[now - then for now, then in zip(*of_policy)] for of_policy in pairs]
        return {"id": index, "correct": correct, "kept": kept}

    def _counts(self) -> list[tuple[int, int]]:
        """Entries kept and all, by policy."""
        return [(model.kept.kept, model.kept.entries) for model in self._models]


def local_names(data_dir: Path) -> list[str]:
    """Tasks that there are local files of."""
    return [name for name in PROMPTS if (data_dir / f"{name}.jsonl").exists()]


def count_scored(data_dir: Path, name: str) -> int:
    """Examples of a local file that are scored; the others are for the shots."""
    return len(_local_rows(data_dir, name)[1])


def begin(path: Path, settings: dict[str, Any]) -> None:
    """Make a task's file ready to go on: what a killed run has left of a line is cut off.

    Raises:
        InputError: it is of other settings, or no file of this program.
    """
    found = read(path, settings)
    lines = [{"settings": settings}, *found.values()]
    if not found or not path.read_bytes().endswith(b"\n"):
        files.write(path, "".join(json.dumps(line) + "\n" for line in lines))


def add(path: Path, line: dict[str, Any]) -> None:
    """Append an example's line, in one piece, for several processes write to the file."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def read(path: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The lines of a task's file by example; none where there is no file.

    Raises:
        InputError: as of :func:`begin`.
    """
    if not path.exists():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    try:
        first, *rest = [json.loads(line) for line in lines if line.endswith(b"\n")]
        same = first["settings"] == json.loads(json.dumps(settings))
        found = {line["id"]: line for line in rest}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a result of this program") from None
    if not same:
        raise InputError(f"{path} is of other settings; choose another --out")
    return dict(sorted(found.items()))


def _local_rows(data_dir: Path, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What gives the shots, the first third, and what is scored."""
    path = data_dir / f"{name}.jsonl"
    rows = []
    for number, row in iterate_json_lines(path):
        for field, (kind, words) in FIELDS.items():
            if type(row.get(field)) is not kind:
                raise InputError(f'{path}, line {number}: no "{field}" that is {words}')
        rows.append(row)
    third = len(rows) // 3
    return rows[:third], rows[third:]


def _local(data_dir: Path, name: str) -> dict[str, Any]:
    """A task of the harness over a local file."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    splits = dict(zip(("shots", "scored"), _local_rows(data_dir, name)))
    return {
        "task": name,
        "custom_dataset": lambda **_: {
            # Without a fingerprint datasets would make one by pickling, which not all versions can.
            split: Dataset(InMemoryTable.from_pylist(own), fingerprint=f"{name}-{split}")
            for split, own in splits.items()
        },
        "output_type": "multiple_choice",
        "fewshot_split": "shots",
        "test_split": "scored",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
        **PROMPTS[name],
    }
