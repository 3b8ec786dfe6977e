"""kvpress on the prompts of our runs, each context compressed before its question is known.

    .venv-torch/bin/python scripts/study/kvpress_scores.py --benchmark ruler --compress context \\
        --config configs/studies/unseen.yaml --model_path DIRECTORY --output_dir results \\
        [--limit_s 600]

Takes the flags of eval_llama3.py, reads the same tokens and writes runs as it does. Of the policies
it runs the full cache and those that kvpress has presses for, at the same settings, on the model as
transformers itself loads it from a directory in Hugging Face layout. What kvpress keeps equally
much of is decoded as one batch. Its methods are called ``kvpress: snapkv`` and the like:
compute_scores.py and report.py put them beside ours, scripts/study/agreement.py compares the two.

An example is written as soon as it is done under every method at one share. With --limit_s no
example begins after that; the same command goes on from there. Several processes share the examples
as eval_llama3.py's do. kvpress is in .venv-torch, see requirements-kvpress.txt; it wants a
transformers below 5.3.
"""

from __future__ import annotations

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts" / "bench")]

from presses import PRESSES, press_of  # noqa: E402

from benchmarks import Example, Task  # noqa: E402
from evaluation import arguments  # noqa: E402
from evaluation.evaluate import check_data, chosen_examples  # noqa: E402
from evaluation.launch import Processes  # noqa: E402
from evaluation.policies import chosen_policies  # noqa: E402
from evaluation.prompting import Prompting, prompting_for  # noqa: E402
from evaluation.runs import Run  # noqa: E402
from evaluation.summary import summarise, table  # noqa: E402
from kvevict.backends import use_device  # noqa: E402
from kvevict.command import Parser, command  # noqa: E402
from kvevict.errors import InputError  # noqa: E402
from kvevict.methods import Policy  # noqa: E402
from kvevict.models import read_checkpoint  # noqa: E402
from kvevict.models.identity import model_identity  # noqa: E402

BEGAN = time.monotonic()
NAME = "kvpress: "


class Setting(NamedTuple):
    """A policy that kvpress takes, and its run."""

    policy: Policy
    run: Run


@command("what was answered is kept, and the same command goes on from there")
def main(argv: Sequence[str] | None = None) -> None:
    """Answer, share by share."""
    args, limit_s = _arguments(argv)
    (benchmark, *more) = arguments.chosen_benchmarks(args)
    if more:
        raise InputError("--length: one at a time")
    policies, wanted = chosen_policies(args), benchmark.resolve(args.task)
    processes = Processes()
    first = processes.rank == 0
    place, dtype = use_device(args.device, args.dtype, args.framework)
    checkpoint = read_checkpoint(args.model_path)
    prompting = prompting_for(args, [benchmark], checkpoint, policies)
    numerics = {"dtype": dtype, "device": "cpu" if str(place) == "cpu" else "gpu"}
    rank = processes.rank if processes.world > 1 else None
    settings = []
    for name, of_run in arguments.runs(args, policies, benchmark.length):
        policy = policies[len(settings)]
        of_run["policy"]["name"] = NAME + policy.name
        run = Run(Path(args.output_dir) / f"kvpress-{name}", {**of_run, **numerics}, rank)
        settings.append(Setting(policy, run))
    settings = [one for one in settings if one.policy.name in ("full", *PRESSES)]
    data = check_data(benchmark, args, wanted) if first else {}
    if first:
        for setting in settings:
            setting.run.open(data, model_identity(args.model_path, checkpoint.source))
            setting.run.record["kvpress"] = version("kvpress")
            setting.run.save()
    model = _model(checkpoint.source, dtype, place)
    processes.begin()
    pressing = _Pressing(model, prompting, set(checkpoint.eos_ids))
    for keep in dict.fromkeys(_kept(one.policy) for one in settings):
        own = [one for one in settings if _kept(one.policy) == keep]
        for task in wanted:
            done = [one.run.done(task.name) for one in own]
            examples = list(chosen_examples(benchmark, args, task))
            pending = [e for e in examples if any(e.id not in of_run for of_run in done)]
            for example in processes.share(pending, neighbours=False):
                if limit_s and time.monotonic() - BEGAN > limit_s:
                    break
                _write(pressing, task, example, own, done)
                seconds = time.monotonic() - BEGAN
                print(f"{seconds:.0f} s: {task.name} {example.id}, {keep:g} kept", file=sys.stderr)
    processes.end()
    if first:
        for setting in settings:
            _finish(setting.run, list(data))
        print(table([setting.run for setting in settings], benchmark, wanted))


def _arguments(argv: Sequence[str] | None) -> tuple[Namespace, float]:
    parser = Parser(description=__doc__.splitlines()[0], add_help=False, allow_abbrev=False)
    parser.add_argument("--limit_s", type=float, default=0)
    own, rest = parser.parse_known_args(argv)
    args = arguments.parse(["--framework=pytorch", *rest])
    if args.framework != "pytorch" or args.compress != "context":
        raise InputError("kvpress compresses a context, on PyTorch: give --compress context")
    if args.nll:
        raise InputError("--nll is of our own runs: kvpress is asked for answers alone")
    if find_spec("kvpress") is None:
        raise InputError(f"{sys.executable} finds no kvpress: its directory belongs in PYTHONPATH")
    logging.getLogger("kvpress").setLevel(logging.ERROR)  # it warns that KVzip reads twice
    return args, own.limit_s


def _kept(policy: Policy) -> float:
    """A share, or entries of a head."""
    return policy.budget or policy.keep_ratio


def _model(source: str, dtype: str, place: Any) -> Any:
    import torch
    import transformers
    from pressed import keep_tokenizer

    if not Path(source).is_dir():
        raise InputError(f"--model_path: {source} is no directory, as transformers wants one")
    keep_tokenizer()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    return model.to(place).eval()


class _Pressing:
    """Answers of one model under presses."""

    def __init__(self, model: Any, prompting: Prompting, eos: set[int]) -> None:
        self.model, self.prompting, self.eos = model, prompting, eos

    def answers(
        self, task: Task, example: Example, policies: list[Policy]
    ) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """The answer under each policy, by its number, and its statistics."""
        from pressed import Pressed, answer

        tokens = self.prompting.tokens(task, example)
        ids, repetition = tokens.compressed, self.prompting.repetition(task)
        groups: dict[int, list[tuple[int, Pressed, dict[str, Any]]]] = {}
        for number, policy in enumerate(policies):
            began = time.perf_counter()
            press = None
            if policy.name != "full":
                press = press_of(policy, len(ids), repetition.prefix(ids))
            pressed = Pressed(self.model, press, ids)
            row = {
                "id": example.id,
                "prompt_tokens": tokens.total,
                "uncut_tokens": tokens.uncut,
                "policies": 1,
                "cache_bytes": pressed.nbytes,
                "full_cache_bytes": pressed.nbytes // pressed.length * len(ids),
                "prefill_seconds": round(time.perf_counter() - began, 4),
            }
            groups.setdefault(pressed.length, []).append((number, pressed, row))
        most, eos = task.max_new_tokens, self.eos
        stop = {self.prompting.last_token(task.stop)} if task.stop else set()
        while groups:
            _, members = groups.popitem()
            numbers, pressed, rows = (list(part) for part in zip(*members))
            began = time.perf_counter()
            found = answer(self.model, pressed, len(ids), tokens.after, most, eos | stop, len(stop))
            seconds = (time.perf_counter() - began) / len(rows)
            for number, answer_ids, row in zip(numbers, found, rows):
                steps = {
                    "new_tokens": len(answer_ids),
                    "decode_steps": min(len(answer_ids), most - 1),
                }
                row |= {**steps, "decode_seconds": round(seconds, 4), "decoded_together": len(rows)}
                yield number, self.prompting.tokenizer.decode(answer_ids), row


def _write(
    pressing: _Pressing, task: Task, example: Example, own: list[Setting], done: list[set[int]]
) -> None:
    reference = task.reference(example.fields)
    for number, text, row in pressing.answers(task, example, [one.policy for one in own]):
        if example.id not in done[number]:
            prediction = {"id": example.id, "prediction": text, **reference}
            own[number].run.append(task.name, prediction, row)


def _finish(run: Run, tasks: list[str]) -> None:
    for task in tasks:
        run.merge(task)
        run.record["tasks"][task].update(summarise(run.stats(task)))
    run.save()


if __name__ == "__main__":
    sys.exit(main())
