"""Predict ∞Bench with a Llama model under KV-cache eviction.

    python eval_llama3.py --enable_nacl_evict --task all
    python eval_llama3.py --method nacl,laprox --keep_ratio 0.1,0.2 --task passkey
    python -m paddle.distributed.launch --nproc_per_node 2 eval_llama3.py …

Each policy gets a run directory under ``--output_dir``; a run that was stopped goes on where it
stopped when the same command is given again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from evaluation import arguments, launch
from evaluation.runs import Run
from kvevict import runtime
from kvevict.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one sentence on what is wrong with the input."""
    try:
        evaluate(arguments.parser().parse_args(argv))
    except (InputError, FloatingPointError) as error:
        print(f"eval_llama3.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def evaluate(args: Any) -> None:
    """Run every task under every policy asked for."""
    import tasks
    from kvevict.models import load

    chosen = arguments.policies(args)
    wanted = tasks.resolve(args.task)
    if args.start_idx < 0 or (args.stop_idx is not None and args.stop_idx <= args.start_idx):
        raise InputError("--start_idx and --stop_idx must name a range of examples")
    if args.max_length < 1:
        raise InputError(f"--max_length must be positive, not {args.max_length}")
    data = {task.name: _read(args, task) for task in wanted}

    rank, world = launch.rank_and_world()
    name = Path(args.model_path).name
    names = arguments.run_names(args, name, chosen)
    runs = [
        Run(Path(args.output_dir) / run_name, arguments.settings_of(args, name, policy), rank)
        for run_name, policy in zip(names, chosen)
    ]
    if rank == 0:
        for run in runs:
            run.open()
            for task in wanted:
                run.merge(task.name)
                run.check_data(task.name, data[task.name][1])
    loaded = load(args.model_path, device=args.device)
    launch.start(world)
    launch.barrier(world)

    for task in wanted:
        _run_task(task, data[task.name][0], args, loaded, list(zip(runs, chosen)), rank, world)
    for run in runs:
        run.close()
    launch.barrier(world)
    if rank == 0:
        for run in runs:
            _finish(run, [task.name for task in wanted])


def _read(args: Any, task: Any) -> tuple[list[Any], str]:
    import tasks

    path = Path(args.data_dir) / task.file
    examples = tasks.read_examples(path, task)
    return examples[args.start_idx : args.stop_idx], hashlib.sha256(path.read_bytes()).hexdigest()


def _run_task(
    task: Any, examples: list[Any], args: Any, loaded: Any, runs: list[Any], rank: int, world: int
) -> None:
    """This process's share of one task."""
    from tqdm import tqdm

    import tasks
    from evaluation.predict import Limits, Predictor
    from kvevict.integrations.paddlenlp import PaddleNLPDecoder

    limits = Limits(args.max_length, loaded.max_positions, not args.no_truncation)
    decoder, eos = PaddleNLPDecoder(loaded.model), set(loaded.eos_ids)
    predictor = Predictor(decoder, loaded.tokenizer, eos, limits, args.compress)
    done = [run.done(task.name) for run, _ in runs]
    pending = [e for e in examples if any(e.id not in ids for ids in done)]
    bar = tqdm(
        pending[rank::world],
        desc=task.table_name,
        disable=rank > 0 or not pending,
        unit="ex",
        dynamic_ncols=True,
    )
    for example in bar:
        open_runs = [pair for pair, ids in zip(runs, done) if example.id not in ids]
        policies = [policy for _, policy in open_runs]
        began = time.perf_counter()
        answers = predictor.predict(task, example, policies, task.max_new_tokens)
        for (run, _), (answer, stats) in zip(open_runs, answers):
            truth = tasks.label(task, example)
            row = {"id": example.id, "prediction": answer, "ground_truth": truth}
            run.append(task.name, row, stats)
            if args.verbose and rank == 0:
                bar.write(f"{run.path.name} #{example.id}: {answer!r}  (label {truth!r})")
        tokens = sum(s["prompt_tokens"] + s["new_tokens"] for _, s in answers)
        held = max(s["cache_bytes"] for _, s in answers)
        bar.set_postfix_str(
            f"{tokens / (time.perf_counter() - began):.0f} tok/s, cache {held / 2**20:.1f} MiB"
        )


def _finish(run: Run, task_names: list[str]) -> None:
    """Merge what all processes wrote, and sum it up in run.json."""
    from statistics import mean

    for name in task_names:
        run.merge(name)
        stats = run.stats(name)
        if not stats:
            continue
        new = sum(s["new_tokens"] for s in stats)
        run.record["tasks"][name].update(
            examples=len(stats),
            prompt_tokens=sum(s["prompt_tokens"] for s in stats),
            new_tokens=new,
            prefill_seconds=round(mean(s["prefill_seconds"] for s in stats), 4),
            ms_per_token=round(1e3 * sum(s["decode_seconds"] for s in stats) / max(1, new), 3),
            cache_bytes=round(mean(s["cache_bytes"] for s in stats)),
            full_cache_bytes=round(mean(s["full_cache_bytes"] for s in stats)),
        )
    run.record["versions"] = runtime.versions()
    run.record["peak_memory_bytes"] = runtime.peak_process_bytes()
    run.save()
    print(json.dumps({"run": str(run.path), "tasks": task_names}))


if __name__ == "__main__":
    sys.exit(main())
