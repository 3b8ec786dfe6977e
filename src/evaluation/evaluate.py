"""Every task of a benchmark under every policy, from data files to predictions."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks import Benchmark, Example, Task
from benchmarks.examples import read_examples
from evaluation import arguments
from evaluation.launch import Processes
from evaluation.policies import chosen_policies
from evaluation.predict import Predictor
from evaluation.progress import Progress
from evaluation.prompting import prompting_for
from evaluation.runs import Run
from evaluation.summary import summarise, table
from kvevict import environment, load
from kvevict.backends import LoadedModel, backend, check_framework, use_device
from kvevict.engine.session import Decoder
from kvevict.errors import InputError
from kvevict.files import file_sha256
from kvevict.methods import Policy
from kvevict.models import read_checkpoint
from kvevict.models.checkpoint import Checkpoint
from kvevict.models.identity import model_identity


@dataclass(frozen=True)
class Part:
    """A benchmark at one length of its data.

    Attributes:
        benchmark: at that length.
        runs: one for each policy.
        data: SHA-256 of each task's file, as the first process found them.
    """

    benchmark: Benchmark
    runs: list[Run]
    data: dict[str, str]


def evaluate(args: Namespace) -> None:
    """Run every task under every policy asked for; what can be wrong is found out first."""
    chosen = arguments.chosen_benchmarks(args)
    policies, wanted = chosen_policies(args), chosen[0].resolve(args.task)
    processes = Processes()
    first = processes.rank == 0
    place, dtype = use_device(args.device, args.dtype, args.framework)
    if args.dtype == use_device(args.device, None, args.framework)[1]:
        args.dtype = None  # naming the default makes no other run
    checkpoint = read_checkpoint(args.model_path)
    check_framework(checkpoint, args.framework)
    prompting = prompting_for(args, chosen, checkpoint, policies)
    for task in wanted:
        prompting.max_prompt_tokens(task)
    if first:
        _make_data(chosen, args, wanted, checkpoint)
    numerics = {"dtype": dtype, "device": "cpu" if str(place) == "cpu" else "gpu"}
    parts = []
    for benchmark in chosen:
        data = check_data(benchmark, args, wanted) if first else {}
        rank = processes.rank if processes.world > 1 else None
        runs = [
            Run(Path(args.output_dir) / name, {**settings, **numerics}, rank)
            for name, settings in arguments.runs(args, policies, benchmark.length)
        ]
        parts.append(Part(benchmark, runs, data))
    if first and args.no_truncation:
        for part in parts:
            for task in wanted:
                for example in chosen_examples(part.benchmark, args, task):
                    prompting.tokens(task, example)
    model = model_identity(args.model_path, checkpoint.source)
    runs = [run for part in parts for run in part.runs]
    if first:
        for part in parts:
            for run in part.runs:
                run.check(part.data, model)
        print(f"loading {args.model_path} ({dtype}, {numerics['device']})", file=sys.stderr)
    loaded = load(checkpoint, dtype, args.device, args.framework)
    if first:
        for part in parts:
            for run in part.runs:
                run.open(part.data, model)
        decoder = _decoder(loaded, runs)
    processes.begin()
    if not first:  # as the first process, which has written it down
        decoder = loaded.decoder(runs[0].products())
    own = backend(args.framework)
    predictor = Predictor(
        decoder,
        prompting,
        set(loaded.eos_ids),
        args.decode_together,
        args.batch,
        args.nll,
        args.unpack,
    )
    predicted = sum(
        _run_task(part, task, args, predictor, policies, processes)
        for part in parts
        for task in wanted
    )
    processes.end()
    if first:
        if len(runs) == 1 and predicted:  # of a sweep's settings none has a peak of its own
            runs[0].record["peak_memory_bytes"] = environment.peak_process_bytes()
            runs[0].record["peak_device_bytes"] = own.peak_device_bytes()
        templated = [task.name for task in wanted if prompting.template(task)]
        for run in runs:
            run.record["chat"] = {"mode": args.chat, "in_template": templated}
            _finish(run, wanted, processes.world, loaded.device)
        print(table(runs, chosen[0], wanted))
        print(f"every run: python compute_scores.py --output_dir {args.output_dir}")


def _decoder(loaded: LoadedModel, runs: list[Run]) -> Decoder:
    """The model with the products that the runs were begun with, or the fastest, on record."""
    before = (run.products() for run in runs)
    decoder = loaded.decoder(next(filter(None, before), None))
    for run in runs:
        run.note_products(decoder.products)
    return decoder


def chosen_examples(benchmark: Benchmark, args: Namespace, task: Task) -> Iterator[Example]:
    """The examples of a task that are asked for."""
    examples = read_examples(benchmark, task, Path(args.data_dir))
    return islice(examples, args.start_idx, args.stop_idx)


def _make_data(
    chosen: list[Benchmark], args: Namespace, wanted: list[Task], checkpoint: Checkpoint
) -> None:
    """Make the data that are not there, where a benchmark's data are made."""
    positions = checkpoint.max_positions
    made = [benchmark for benchmark in chosen if benchmark.make]
    for benchmark in made:
        if benchmark.length > positions:
            raise InputError(f"--length {benchmark.length}: the model has {positions} positions")
    for benchmark in made:
        folder = Path(args.data_dir) / benchmark.folder
        benchmark.make(folder, wanted, benchmark.length, checkpoint.tokenizer)


def check_data(benchmark: Benchmark, args: Namespace, wanted: list[Task]) -> dict[str, str]:
    """Read all that will be run once; the SHA-256 of each task's file."""
    found = {}
    for task in wanted:
        path = benchmark.file(Path(args.data_dir), task)
        count = sum(1 for _ in read_examples(benchmark, task, Path(args.data_dir)))
        if count <= args.start_idx:
            raise InputError(f"{path} has {count} examples, none from --start_idx {args.start_idx}")
        found[task.name] = file_sha256(path)
    return found


def _run_task(
    part: Part,
    task: Task,
    args: Namespace,
    predictor: Predictor,
    policies: list[Policy],
    processes: Processes,
) -> int:
    """Predict this process's share of one task; how many examples that were."""
    todo = [(run, policy, run.done(task.name)) for run, policy in zip(part.runs, policies)]
    examples = chosen_examples(part.benchmark, args, task)
    pending = [e for e in examples if any(e.id not in done for *_, done in todo)]
    own = processes.share(pending, neighbours=args.compress == "context")
    share = f" (1 of {processes.world})" if processes.world > 1 else ""
    members: dict[int, list[tuple[Run, Policy, set[int]]]] = {}  # by example

    def work() -> Iterator[tuple[Example, list[Policy]]]:
        for example in progress:
            # A batch of fewer settings may round otherwise: those that are done take part again.
            asked = [one for one in todo if args.decode_together or example.id not in one[2]]
            members[example.id] = asked
            yield example, [policy for _, policy, _ in asked]

    with Progress(own, task.title + share, visible=processes.rank == 0) as progress:
        for example, place, answer, stats in predictor.predict(task, work()):
            run, _, done = members[example.id][place]
            progress.report(stats, first=place == 0)
            if example.id in done:
                continue
            reference = task.reference(example.fields)
            run.append(task.name, {"id": example.id, "prediction": answer, **reference}, stats)
            if args.verbose:
                label = next(iter(reference.values()))
                progress.print(f"{run.path.name} #{example.id}: {answer!r} (label {label!r})")
    return len(own)


def _finish(run: Run, wanted: list[Task], world: int, device: str) -> None:
    """Merge what all processes wrote, and sum it up in run.json."""
    for task in wanted:
        run.merge(task.name)
        run.record["tasks"][task.name].update(summarise(run.stats(task.name)))
    run.record.update(processes=world, threads=environment.cpu_threads(), device=device)
    run.save()
