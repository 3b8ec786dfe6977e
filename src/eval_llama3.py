"""Predict a benchmark with a language model under KV-cache eviction.

    python eval_llama3.py --enable_nacl_evict --task all
    python eval_llama3.py --method nacl,laprox --keep_ratio 0.1,0.2 --task passkey
    python eval_llama3.py --benchmark longbench --task hotpotqa,qasper --method snapkv
    python -m paddle.distributed.launch --nproc_per_node 2 --log_dir ../results/log \\
        eval_llama3.py …
    torchrun --nproc_per_node 2 eval_llama3.py --framework pytorch …

Each policy gets a run directory under ``--output_dir``; a run that was stopped goes on where it
stopped when the same command is given again.
"""

from __future__ import annotations

import hashlib
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path

from benchmarks import Benchmark, Example, Task
from benchmarks.examples import read_examples
from evaluation import arguments
from evaluation.launch import Processes
from evaluation.policies import chosen_policies
from evaluation.predict import Predictor
from evaluation.progress import Progress
from evaluation.prompting import Prompting
from evaluation.runs import Run
from evaluation.summary import summarise, table
from kvevict import environment, load
from kvevict.backends import backend, check_framework, use_device
from kvevict.command import command
from kvevict.errors import InputError
from kvevict.methods import Policy
from kvevict.models import read_checkpoint
from kvevict.models.identity import model_identity


@command("the same command goes on from here")
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see :func:`evaluate`."""
    evaluate(arguments.parse(argv))


def evaluate(args: Namespace) -> None:
    """Run every task under every policy asked for; what can be wrong is found out first."""
    parts = arguments.chosen_benchmarks(args)
    policies, wanted = chosen_policies(args), parts[0].resolve(args.task)
    processes = Processes()
    rank = processes.rank if processes.world > 1 else None
    data = []
    if processes.rank == 0:
        _make_data(parts, args, wanted)
        data = [_check_data(part, args, wanted) for part in parts]

    place, dtype = use_device(args.device, args.dtype, args.framework)
    if args.dtype == use_device(args.device, None, args.framework)[1]:
        args.dtype = None  # the default, said aloud, makes no other run
    numerics = {"dtype": dtype, "device": "cpu" if str(place) == "cpu" else "gpu"}
    runs = [
        [
            Run(Path(args.output_dir) / name, {**settings, **numerics}, rank)
            for name, settings in arguments.runs(args, policies, part.length)
        ]
        for part in parts
    ]
    checkpoint = read_checkpoint(args.model_path)
    check_framework(checkpoint, args.framework)
    if args.chat == "on" and checkpoint.chat is None:
        raise InputError(f"--chat on: {args.model_path} has no chat template")
    positions = checkpoint.max_positions
    prompting = Prompting(
        parts[0],
        checkpoint.tokenizer,
        None if args.chat == "off" else checkpoint.chat,
        chat_everywhere=args.chat == "on",
        max_length=args.max_length or parts[0].longest_prompt(positions),
        positions=positions,
        truncate=not args.no_truncation,
        compress=args.compress,
    )
    for part, task in product(parts, wanted):
        prompting.max_prompt_tokens(task)
        if args.no_truncation and processes.rank == 0:
            for example in _examples(part, args, task):
                prompting.tokens(task, example)
    model = model_identity(args.model_path, checkpoint.source)
    if processes.rank == 0:
        for of_part, own in zip(runs, data):
            for run in of_part:
                run.check(own, model)
        print(f"loading {args.model_path} ({dtype}, {numerics['device']})", file=sys.stderr)
    loaded = load(checkpoint, dtype, args.device, args.framework)
    if processes.rank == 0:
        for of_part, own in zip(runs, data):
            for run in of_part:
                run.open(own, model)
    processes.begin()
    eos = set(loaded.eos_ids)
    predictor = Predictor(loaded.decoder(), prompting, eos, args.decode_together)
    predicted = 0
    for (part, own), task in product(zip(parts, runs), wanted):
        examples = _examples(part, args, task)
        predicted += _run_task(task, examples, args, predictor, list(zip(own, policies)), processes)
    processes.end()
    if processes.rank == 0:
        every = [run for own in runs for run in own]
        if len(every) == 1 and predicted:  # of a sweep's settings none has a peak of its own
            every[0].record["peak_memory_bytes"] = environment.peak_process_bytes()
            every[0].record["peak_device_bytes"] = backend(args.framework).peak_device_bytes()
        for run in every:
            _finish(run, wanted, processes.world, loaded.device)
        print(table(every, parts[0], wanted))
        print(f"every run: python compute_scores.py --output_dir {args.output_dir}")


def _examples(benchmark: Benchmark, args: Namespace, task: Task) -> Iterator[Example]:
    examples = read_examples(benchmark, task, Path(args.data_dir))
    return islice(examples, args.start_idx, args.stop_idx)


def _make_data(parts: list[Benchmark], args: Namespace, wanted: list[Task]) -> None:
    """Make the data that are not there, where a benchmark's data are made."""
    if parts[0].make is None:
        return
    checkpoint = read_checkpoint(args.model_path)
    for part in parts:
        if part.length > checkpoint.max_positions:
            positions = checkpoint.max_positions
            raise InputError(f"--length {part.length}: the model has {positions} positions")
    for part in parts:
        folder = Path(args.data_dir) / part.folder
        part.make(folder, wanted, part.length, checkpoint.tokenizer)


def _check_data(benchmark: Benchmark, args: Namespace, wanted: list[Task]) -> dict[str, str]:
    """Read all that will be run once; the SHA-256 of each task's file."""
    found = {}
    for task in wanted:
        path = benchmark.file(Path(args.data_dir), task)
        count = sum(1 for _ in read_examples(benchmark, task, Path(args.data_dir)))
        if count <= args.start_idx:
            raise InputError(f"{path} has {count} examples, none from --start_idx {args.start_idx}")
        with open(path, "rb") as file:
            sha256 = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                sha256.update(block)
        found[task.name] = sha256.hexdigest()
    return found


def _run_task(
    task: Task,
    examples: Iterator[Example],
    args: Namespace,
    predictor: Predictor,
    runs: list[tuple[Run, Policy]],
    processes: Processes,
) -> int:
    """Predict this process's share of one task; how many examples that were."""
    todo = [(run, policy, run.done(task.name)) for run, policy in runs]
    pending = [e for e in examples if any(e.id not in done for *_, done in todo)]
    own = processes.share(pending, neighbours=args.compress == "context")
    share = f" (1 of {processes.world})" if processes.world > 1 else ""
    progress = Progress(own, task.title + share, visible=processes.rank == 0)
    for example in progress:
        # A batch with fewer members may round otherwise, so those that are done take part again.
        members = [m for m in todo if args.decode_together or example.id not in m[2]]
        began = time.perf_counter()
        answers = predictor.predict(task, example, [policy for _, policy, _ in members])
        reference = task.reference(example.fields)
        label = next(iter(reference.values()))
        for (run, _, done), (answer, stats) in zip(members, answers):
            if example.id in done:
                continue
            row = {"id": example.id, "prediction": answer, **reference}
            run.append(task.name, row, stats)
            if args.verbose:
                progress.print(f"{run.path.name} #{example.id}: {answer!r} (label {label!r})")
        progress.report([stats for _, stats in answers], time.perf_counter() - began)
    return len(own)


def _finish(run: Run, wanted: list[Task], world: int, device: str) -> None:
    """Merge what all processes wrote, and sum it up in run.json."""
    for task in wanted:
        run.merge(task.name)
        run.record["tasks"][task.name].update(summarise(run.stats(task.name)))
    run.record.update(processes=world, threads=environment.cpu_threads(), device=device)
    run.save()


if __name__ == "__main__":
    sys.exit(main())
