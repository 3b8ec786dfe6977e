"""Scores that others published, and which of them are of the same setting as a run of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Optional

import yaml

import benchmarks
from kvevict.methods import build, describe

FILE = Path(__file__).with_name("published.yaml")
#: Of a run, where its record does not say otherwise.
USUAL = {"compress": "prompt", "chat": "auto", "truncation": True, "length": None}
# Of a policy, what does not make it another one: a published score has no seed of ours.
NOT_COMPARED = ("seed",)


@dataclass(frozen=True)
class Average:
    """A published mean: its score, on the benchmark's own scale, and the tasks that it is over."""

    score: float
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """One model, method and budget, as one source has it. Scores are on the benchmark's own scale.

    Attributes:
        source: who published it, and where.
        benchmark: its name.
        models: names of the model, in lower case.
        policy: the method, as runs record it.
        setting: what a run has to record beside.
        scores: by task.
        averages: by title.
    """

    source: str
    benchmark: str
    models: tuple[str, ...]
    policy: dict[str, Any]
    setting: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    averages: dict[str, Average] = field(default_factory=dict)


def beside(settings: Mapping[str, Any]) -> Optional[Published]:
    """What was published of the setting of a run; None for nothing.

    The benchmark, the model, the method with all its settings, the budget and whatever else a run
    records of what its answers depend on have to be equal: but for its precision, its framework and
    how it was batched.

    Args:
        settings: as in run.json.
    """
    return next((one for one in known() if _is_same(one, settings)), None)


@cache
def known() -> tuple[Published, ...]:
    """All there is in :data:`FILE`."""
    return tuple(map(_read, yaml.safe_load(FILE.read_text("utf-8"))))


def _read(entry: dict[str, Any]) -> Published:
    own = benchmarks.known().get(entry["benchmark"])
    averages = {}
    for title, value in entry.get("averages", {}).items():
        value = value if isinstance(value, dict) else {"score": value, "tasks": own.averages[title]}
        averages[title] = Average(value["score"], tuple(value["tasks"]))
    policy = dict(entry["policy"])
    if policy["method"] != "full" and "budget" not in policy:  # as for runs of that benchmark
        policy.setdefault("min_eviction_seqlen", own.min_eviction_seqlen if own else 0)
    return Published(
        entry["source"],
        entry["benchmark"],
        tuple(map(str.lower, entry["models"])),
        _comparable(describe(build(**policy))),
        entry.get("setting", {}),
        entry.get("scores", {}),
        averages,
    )


def _is_same(one: Published, settings: Mapping[str, Any]) -> bool:
    own = benchmarks.known().get(one.benchmark)
    usual = {**USUAL, "max_length": own.max_length if own else None}
    return (
        settings.get("benchmark", benchmarks.DEFAULT) == one.benchmark
        and settings["model"].rstrip("/").rpartition("/")[2].lower() in one.models
        and _comparable(settings["policy"]) == one.policy
        and all(
            settings.get(key, usual.get(key)) == value
            for key, value in {**usual, **one.setting}.items()
        )
    )


def _comparable(policy: Mapping[str, Any]) -> dict[str, Any]:
    """A policy as recorded, without what makes no other method; all full caches are one."""
    if policy["name"] == "full":
        return {"name": "full"}
    plain = json.loads(json.dumps(policy))
    return {key: value for key, value in plain.items() if key not in NOT_COMPARED}
