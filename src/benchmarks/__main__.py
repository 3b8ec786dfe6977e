"""For scripts/download_dataset.sh: the published files of a benchmark's tasks.

python -m benchmarks missing BENCHMARK SPEC DIRECTORY    those of --task SPEC that are not there
python -m benchmarks check BENCHMARK TASK FILE           status 0 if FILE is the whole one of TASK
python -m benchmarks unpack BENCHMARK ARCHIVE DIRECTORY  those that are not there, from a zip
"""

import sys
from pathlib import Path

from benchmarks import infinitebench, longbench, published
from kvevict.command import command
from kvevict.errors import InputError

# No others are imported, so that a Python without any packages can run this.
BENCHMARKS = {one.name: one for module in (infinitebench, longbench) for one in module.BENCHMARKS}


def _missing(name: str, spec: str, directory: str) -> None:
    benchmark = BENCHMARKS[name]
    offered = [task.name for task in benchmark.tasks.values() if task.examples]
    wanted = benchmark.resolve(spec, offered)
    for task in wanted:
        if not task.examples:
            raise InputError(
                f"task {task.name} is built by data/construct_synthetic_dataset.py, not downloaded"
            )
    for task in published.missing(wanted, Path(directory)):
        print(task.name)


def _check(name: str, task: str, path: str) -> None:
    published.check(Path(path), BENCHMARKS[name].tasks[task])


def _unpack(name: str, archive: str, directory: str) -> None:
    tasks = published.missing(list(BENCHMARKS[name].tasks.values()), Path(directory))
    published.unpack(Path(archive), tasks, Path(directory))


@command()
def main(name: str, *arguments: str) -> None:
    """Run ``missing``, ``check`` or ``unpack``."""
    {"missing": _missing, "check": _check, "unpack": _unpack}[name](*arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
