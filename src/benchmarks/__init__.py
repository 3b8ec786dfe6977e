"""Benchmarks: their tasks, data, prompts and scores, and generators of synthetic examples."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules

from benchmarks.benchmark import Benchmark, Example, Prompt, Task
from kvevict.errors import InputError

DEFAULT = "infinitebench"

__all__ = ["DEFAULT", "Benchmark", "Example", "Prompt", "Task", "get", "known", "tasks"]


@lru_cache(maxsize=1)
def known() -> dict[str, Benchmark]:
    """All there are, by name: those of every module here that has a tuple ``BENCHMARKS``."""
    names = [module.name for module in iter_modules(__path__) if module.name != "__main__"]
    modules = [import_module(f"{__name__}.{name}") for name in names]
    found = [one for module in modules for one in getattr(module, "BENCHMARKS", ())]
    return {one.name: one for one in sorted(found, key=lambda one: (one.name != DEFAULT, one.name))}


def get(name: str = DEFAULT) -> Benchmark:
    """The benchmark of this name.

    Raises:
        InputError: there is none.
    """
    if name not in known():
        raise InputError(f"unknown benchmark {name!r}; choose from {', '.join(known())}")
    return known()[name]


def tasks() -> dict[str, Task]:
    """The tasks of all benchmarks by name, in their tables' order; of two alike the first."""
    found: dict[str, Task] = {}
    for one in known().values():
        for name, task in one.tasks.items():
            found.setdefault(name, task)
    return found
