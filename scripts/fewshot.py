"""Short tasks of lm-evaluation-harness at 5 and 25 shots, as in table 1 of NACL's paper.

    python scripts/fewshot.py --out DIR                      the paper's seven tasks, of the hub
    python scripts/fewshot.py --out DIR --data_dir FILES     those of which there are local files

Each prompt is prefilled once for all methods of ``--config``, and its choices are scored side by
side on what each of them keeps; no shot is among what is scored. Each example is a line of a file
in ``--out`` as soon as it is scored: the same command goes on where it stopped, with any number of
``--processes``, which share out the examples, and the GPUs of CUDA_VISIBLE_DEVICES. The tables are
of all examples that are there. It needs what ``python -m kvevict.lm_eval`` needs.

Local files are ``<task>.jsonl`` with lines of ``question, choices, label``, and ``relation`` (cause
or effect) for copa: the first third gives the shots, the rest is scored.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from evaluation import fewshot
from evaluation.policies import read_policies, whole_numbers
from kvevict import environment, files
from kvevict.command import Parser, command, user_path
from kvevict.errors import InputError
from kvevict.methods import describe

TASKS = ("piqa", "copa", "openbookqa", "winogrande", "sciq", "arc_easy", "arc_challenge")
CONFIG = Path(__file__).resolve().parents[1] / "configs/studies/fewshot.yaml"


@command("the same command goes on from here")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    began = time.monotonic()
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _arguments(argv)
    files.make_directory(args.out)
    settings = {
        "model": args.model_path.rstrip("/").rpartition("/")[2],
        "policies": list(map(describe, args.policies)),
    }
    if args.part is not None:
        _evaluate(args, settings, began)
        return 0
    todo = False
    for name in args.tasks:
        scored = fewshot.count_scored(args.data_dir, name) if args.data_dir else args.examples
        for shots in args.shots:
            path = _file(args.out, name, shots)
            fewshot.begin(path, settings)
            todo |= len(fewshot.read(path, settings)) < min(args.examples, scored)
    if todo and args.processes > 1:
        status = _in_processes(argv, args.processes)
        if status:
            return status
    elif todo:
        args.part = 0
        _evaluate(args, settings, began)
    print(_tables(args.out, settings))
    return 0


def _evaluate(args: argparse.Namespace, settings: dict[str, Any], began: float) -> None:
    """Score this process's examples, the first of all tasks before the second of any."""
    if find_spec("lm_eval") is None:
        raise InputError(
            f"lm-evaluation-harness is missing: {sys.executable} -m pip install lm_eval==0.4.13"
        )
    environment.configure()  # before the harness imports a framework
    from kvevict.lm_eval.model import KVEvict

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    one = KVEvict(args.model_path, framework=args.framework, dtype=args.dtype, device=args.device)
    models = one.under(args.policies)
    asked = {
        (name, shots): fewshot.Asked(name, shots, args.data_dir, models)
        for shots in sorted(args.shots)
        for name in args.tasks
    }
    done = {own: set(fewshot.read(_file(args.out, *own), settings)) for own in asked}
    for index in range(args.part, args.examples, args.processes):
        for own, task in asked.items():
            if args.seconds and time.monotonic() - began > args.seconds:
                return
            if index < len(task.docs) and index not in done[own]:
                fewshot.add(_file(args.out, *own), task.score(index))


def _tables(out: Path, settings: dict[str, Any]) -> str:
    """A table for each number of shots, of all tasks that there are examples of."""
    from reporting.fewshot import table  # Matplotlib takes a second

    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for name in TASKS:
        for path in sorted(out.glob(f"{name}-*.jsonl")):
            if lines := fewshot.read(path, settings):
                found[int(path.stem.rpartition("-")[2])][name] = lines
    model, policies = settings["model"], settings["policies"]
    return "\n\n".join(table(model, policies, *one).markdown() for one in sorted(found.items()))


def _file(out: Path, name: str, shots: int) -> Path:
    return out / f"{name}-{shots}.jsonl"


def _in_processes(argv: list[str], count: int) -> int:
    """A process for each share of the examples; the first status that is not 0, or 0."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    running = []
    for part in range(count):
        own = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus[part % len(gpus)]} if all(gpus) else None
        command = [sys.executable, __file__, *argv, "--part", str(part)]
        running.append(subprocess.Popen(command, env=own))
    return next((status for status in [one.wait() for one in running] if status), 0)


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
    add("--processes", type=int, default=1, help="which share out the examples")
    add("--seconds", type=int, help="begin no example after so many")
    add("--part", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.examples < 1 or args.processes < 1:
        raise InputError("--examples and --processes must be at least 1")
    args.shots = whole_numbers("shots", args.shots)
    args.policies = read_policies(args.config)
    known = fewshot.local_names(args.data_dir) if args.data_dir else TASKS
    if not known:
        raise InputError(
            f"there is no <task>.jsonl in {args.data_dir}: {', '.join(fewshot.PROMPTS)}"
        )
    args.tasks = args.tasks.split(",") if args.tasks else list(known)
    for name in args.tasks:
        if name not in known:
            raise InputError(f"unknown task {name!r}; choose from {', '.join(known)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
