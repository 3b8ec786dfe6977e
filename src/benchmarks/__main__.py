"""For scripts/download_dataset.sh: which files a benchmark publishes, and whether one is whole.

python -m benchmarks list SPEC           the published tasks of ∞Bench that --task SPEC names
python -m benchmarks check FILE TASK     status 0 if FILE is the whole published file of TASK
"""

import sys
from pathlib import Path

import benchmarks
from benchmarks.examples import check_published
from kvevict.command import command
from kvevict.errors import InputError


def _list(spec: str) -> None:
    benchmark = benchmarks.get()
    published = [name for name, task in benchmark.tasks.items() if task.examples]
    for task in benchmark.resolve(spec, published):
        if not task.examples:
            raise InputError(
                f"task {task.name} is built by data/construct_synthetic_dataset.py, not downloaded"
            )
        print(task.name)


def _check(path: str, name: str) -> None:
    check_published(Path(path), benchmarks.get().tasks[name])


@command()
def main(name: str, *arguments: str) -> None:
    """Run ``list`` or ``check``."""
    {"list": _list, "check": _check}[name](*arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
