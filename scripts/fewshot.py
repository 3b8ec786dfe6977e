"""Short tasks of lm-evaluation-harness at 5 and 25 shots, as in table 1 of NACL's paper.

    python scripts/fewshot.py --out DIR                      the paper's seven tasks, of the hub
    python scripts/fewshot.py --out DIR --data_dir FILES     those of which there are local files

Each prompt is prefilled once for all methods of ``--config``, and its choices are scored on what
each of them keeps; no shot is among what is scored. A task at a number of shots is one file in
``--out``: the same command goes on where it stopped, with any number of ``--processes``. The tables
are of all files that are there. It needs what ``python -m kvevict.lm_eval`` needs.

Local files are ``<task>.jsonl`` with lines of ``question, choices, label``, and ``relation`` (cause
or effect) for copa: the first third gives the shots, the rest is scored.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from benchmarks.examples import iterate_json_lines
from evaluation.policies import read_policies, whole_numbers
from kvevict import environment, files
from kvevict.command import Parser, command, user_path
from kvevict.errors import InputError
from kvevict.methods import describe

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
TASKS = ("piqa", "copa", "openbookqa", "winogrande", "sciq", "arc_easy", "arc_challenge")
FIELDS = {"question": (str, "a text"), "choices": (list, "a list"), "label": (int, "a number")}
CONFIG = Path(__file__).resolve().parents[1] / "configs/studies/fewshot.yaml"


@command("the same command goes on from here")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _arguments(argv)
    files.make_directory(args.out)
    settings = {
        "model": args.model_path.rstrip("/").rpartition("/")[2],
        "examples": args.examples,
        "policies": list(map(describe, args.policies)),
    }
    todo = [
        (name, shots)
        for shots in sorted(args.shots)
        for name in args.tasks
        if not _done(_file(args.out, name, shots), settings)
    ]
    if todo and args.processes > 1:
        status = _in_processes(argv, todo, args.processes)
        if status:
            return status
    elif todo:
        _evaluate(args, todo, settings)
    if not args.part:
        print(_tables(args.out, settings))
    return 0


def _evaluate(args: argparse.Namespace, todo: list[tuple[str, int]], settings: dict) -> None:
    """Write the file of each task and number of shots."""
    if find_spec("lm_eval") is None:
        raise InputError(
            f"lm-evaluation-harness is missing: {sys.executable} -m pip install lm_eval==0.4.13"
        )
    environment.configure()  # before the harness imports a framework
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from kvevict.lm_eval.model import KVEvict

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = {name: _local(args.data_dir, name) if args.data_dir else name for name, _ in todo}
    manager = TaskManager(include_defaults=args.data_dir is None)
    one = KVEvict(args.model_path, framework=args.framework, dtype=args.dtype, device=args.device)
    for name, shots in todo:
        correct, kept, ids = [], [], []
        for model in one.under(args.policies):
            found = simple_evaluate(
                model,
                tasks=[own[name]],
                num_fewshot=shots,
                limit=args.examples,
                task_manager=manager,
                bootstrap_iters=0,
            )
            samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
            ids = [sample["doc_id"] for sample in samples]
            correct.append([int(sample["acc"]) for sample in samples])
            kept.append(model.kept.record())
        record = {"settings": settings, "ids": ids, "correct": correct, "kept": kept}
        files.write(_file(args.out, name, shots), json.dumps(record) + "\n")


def _local(data_dir: Path, name: str) -> dict[str, Any]:
    """A task of the harness over a local file."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    path = data_dir / f"{name}.jsonl"
    rows = []
    for number, row in iterate_json_lines(path):
        for field, (kind, words) in FIELDS.items():
            if type(row.get(field)) is not kind:
                raise InputError(f'{path}, line {number}: no "{field}" that is {words}')
        rows.append(row)
    third = len(rows) // 3
    splits = {"shots": rows[:third], "scored": rows[third:]}
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


def _tables(out: Path, settings: dict[str, Any]) -> str:
    """A table for each number of shots, of all tasks that are there."""
    from reporting.fewshot import table  # Matplotlib takes a second

    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for name in TASKS:
        for path in sorted(out.glob(f"{name}-*.json")):
            if _done(path, settings):
                shots = int(path.stem.rpartition("-")[2])
                found[shots][name] = json.loads(path.read_text("utf-8"))
    model, policies = settings["model"], settings["policies"]
    return "\n\n".join(table(model, policies, *one).markdown() for one in sorted(found.items()))


def _file(out: Path, name: str, shots: int) -> Path:
    return out / f"{name}-{shots}.json"


def _done(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a task was evaluated as it is asked for now."""
    if not path.exists():
        return False
    try:
        same = json.loads(path.read_text("utf-8"))["settings"] == json.loads(json.dumps(settings))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a result of this program") from None
    if not same:
        raise InputError(f"{path} is of other settings; choose another --out")
    return True


def _in_processes(argv: list[str], todo: list[tuple[str, int]], most: int) -> int:
    """A process for each file, so many at a time; the first status that is not 0, or 0."""
    running: list[subprocess.Popen] = []
    status = 0
    while todo or running:
        while todo and len(running) < most:
            name, shots = todo.pop()  # many shots, which take longest, first
            own = ["--tasks", name, "--shots", str(shots), "--processes", "1", "--part"]
            running.append(subprocess.Popen([sys.executable, __file__, *argv, *own]))
        status = running.pop(0).wait() or status
        todo = [] if status else todo
    return status


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description="Short few-shot tasks under many methods, as NACL's table 1.")
    add = parser.add_argument
    add("--out", type=user_path, required=True, help="the directory of results; the run goes on")
    add("--data_dir", type=user_path, help="local files in place of the hub's")
    add("--tasks", help=f"of {', '.join(TASKS)}; by default those that there are data of")
    add("--shots", default="5,25", help="examples before the question (default: %(default)s)")
    add("--examples", type=int, default=100, help="scored a task, the first (default: %(default)s)")
    add("--config", type=user_path, default=CONFIG)
    add("--model_path", default="qwen2.5-coder-1.5b-instruct", help="as for eval_llama3.py")
    add("--framework", help="paddle or pytorch; by default Paddle where it is installed")
    add("--dtype", help="as for eval_llama3.py")
    add("--device", help="as for eval_llama3.py")
    add("--processes", type=int, default=1, help="files made at a time, each by its own")
    add("--part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.examples < 1 or args.processes < 1:
        raise InputError("--examples and --processes must be at least 1")
    args.shots = whole_numbers("shots", args.shots)
    args.policies = read_policies(args.config)
    known = TASKS
    if args.data_dir:
        known = [name for name in PROMPTS if (args.data_dir / f"{name}.jsonl").exists()]
    if not known:
        raise InputError(f"there is no <task>.jsonl in {args.data_dir}: {', '.join(PROMPTS)}")
    args.tasks = args.tasks.split(",") if args.tasks else list(known)
    for name in args.tasks:
        if name not in known:
            raise InputError(f"unknown task {name!r}; choose from {', '.join(known)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
