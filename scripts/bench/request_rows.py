"""Rows of bench_decode.py about whole requests: a prompt read, evicted and answered.

Prompts are read one by one and decoded together, as ``kvevict.generate`` does it. Reading all of
them would take minutes, so a few are really read, in the memory that is left when all the other
places are taken by caches of the same size; then all are decoded, some steps at each of a few
places that are spread over the answer. A request's time is composed of these two measured parts.
The last rows show that the composition holds: there every prompt is read and every token decoded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from bench_setup import GIB, Setup
from decode_rows import WARM, filled, lengths_of, stepped
from prefill_rows import setup_floor
from rate_rows import limited, most, quantised

from kvevict import Policy, build, generate
from kvevict.engine import Batch, prefill
from kvevict.engine.session import Session

ANSWERS = (256, 4096)  # new tokens
LONGEST = 8  # a prompt is so many times its answer at least, which matters to a trial
PLACES = 4  # of an answer where steps are timed


class Workload(NamedTuple):
    """What a row is about.

    Attributes:
        kind: of :func:`decode_rows.lengths_of`, or "int8".
        method, settings: of the prompts that are really read.
        goals: how many times the full cache's requests a second are hoped for, by answer.
    """

    label: str
    kind: str
    method: str
    settings: dict
    goals: tuple[float, ...] = ()

    def policy(self) -> Policy:
        return build(self.method, **self.settings)


FIFTH = {"keep_ratio": 0.2, "min_eviction_seqlen": 0}
FULL = Workload("full cache", "full", "full", {})
EQUAL = Workload("20%, equal heads (SnapKV)", "equal", "snapkv", FIFTH, (1.2, 2.7))
RAGGED = Workload(
    "5%, ragged over the model (LaProx)", "model", "laprox", {**FIFTH, "keep_ratio": 0.05}
)
INT8 = Workload("20% in int8 (SnapKV)", "int8", "snapkv", {**FIFTH, "kv_dtype": "int8"})


def requests(setup: Setup) -> Iterator[dict]:
    """Each workload and answer; what matters most comes first."""
    full: dict[int, float] = {}
    for workloads in ((FULL, EQUAL), (RAGGED, INT8)):
        for answer in ANSWERS:
            for workload in workloads:
                yield row(setup, workload, answer, full)
                setup.free()
        if workloads[0] is FULL and setup.whole:
            yield whole(setup, EQUAL, ANSWERS[0])
            setup.free()


def row(setup: Setup, workload: Workload, answer: int, full: dict[int, float]) -> dict:
    """As many sequences as fit, beside the full cache's, whose row comes first."""
    new = min(answer, setup.prompt // LONGEST)
    with limited(setup):
        stand_in = maker(setup, workload, new)
        one = stand_in(0).cache.nbytes
        found = most(setup, one, lambda n: composed(setup, workload, stand_in, n, new))
    if "error" not in found:
        if workload is FULL:
            full[answer] = found["requests_s"]
        found["beside_full"] = found["requests_s"] / full[answer] if answer in full else None
        found["goal"] = dict(zip(ANSWERS, workload.goals)).get(answer)
    return {"label": f"{workload.label}, {new:,} new tokens", **found}


def composed(
    setup: Setup, workload: Workload, stand_in: Callable[[int], Session], count: int, new: int
) -> dict:
    """Seconds of so many requests, from what a few prompts and some steps take."""
    policy = workload.policy()
    prefill(setup.decoder, prompt(setup), [policy])  # compiles kernels
    read = min(setup.repeats, count)
    sessions = [stand_in(seed) for seed in range(count - read)]
    prefill_s = []
    for _ in range(read):
        ids = prompt(setup)
        setup.wait()
        start = time.perf_counter()
        (session,) = prefill(setup.decoder, ids, [policy])
        setup.wait()
        prefill_s.append(time.perf_counter() - start)
        session.reserve(new)
        sessions.append(session)
    held = sum(session.cache.nbytes for session in sessions)
    batch = Batch(sessions, new)
    step_ms = [at(setup, batch, new, place) for place in range(PLACES)]
    tails = count * new * setup.token_bytes
    prefills_s = count * statistics.median(prefill_s)
    steps_s = new * statistics.mean(step_ms) / 1e3
    floor_ms = setup.floor_ms(held - tails / 2)  # which are read as far as they are written
    floor_prefill_s = setup_floor(setup)
    floor_s = count * floor_prefill_s + new * floor_ms / 1e3
    return {
        "sequences": count,
        "new_tokens": new,
        "cache_gib": held / GIB,
        "peak_gb": setup.peak_bytes() / 1e9,
        "prefill_s": statistics.median(prefill_s),
        "floor_prefill_s": floor_prefill_s,
        "step_ms": statistics.mean(step_ms),
        "floor_ms": floor_ms,
        "prefills_s": prefills_s,
        "steps_s": steps_s,
        "requests_s": count / (prefills_s + steps_s),
        "floor_requests_s": count / floor_s,
        "runs": {"prefill_s": prefill_s, "step_ms": step_ms},
    }


def maker(setup: Setup, workload: Workload, new: int) -> Callable[[int], Session]:
    """What makes a session with room for an answer, from a number: of a random or copied cache."""
    copied = quantised(setup) if workload.kind == "int8" else None

    def stand_in(seed: int) -> Session:
        if copied:
            session = copied()
        else:
            lengths = lengths_of(setup, setup.prompt, workload.kind, seed)
            session = filled(setup, setup.prompt, lengths)
        session.reserve(new)
        return session

    return stand_in


def at(setup: Setup, batch: Batch, new: int, place: int) -> float:
    """Milliseconds of a step in the middle of one of an answer's :data:`PLACES` parts.

    What was decoded before is random there: how long a step takes depends on how much it is.
    """
    steps = max(1, min(setup.steps // 2, new // PLACES - WARM))
    done = max(0, new * (2 * place + 1) // (2 * PLACES) - WARM - steps // 2)
    for session in batch.sessions:
        session.cache.seen = setup.prompt + done
        for layer in session.cache.layers:
            layer.tail_keys[:, :done].normal_()
            layer.tail_values[:, :done].normal_()
            layer.tail = done
    _, times = stepped(setup, batch, steps)
    return statistics.median(times[WARM:])


def whole(setup: Setup, workload: Workload, answer: int) -> dict:
    """Requests from the first prompt to the last token, beside the same composed of two parts."""
    new, count = min(answer, setup.prompt // LONGEST), setup.whole
    with limited(setup):
        found = composed(setup, workload, maker(setup, workload, new), count, new)
        setup.free()
        prompts = [prompt(setup) for _ in range(count)]
        start = time.perf_counter()
        generate(setup.decoder, prompts, workload.policy(), new, set(), batch_size=count)
        setup.wait()
        seconds = time.perf_counter() - start
    return {
        "label": f"{workload.label}, {count} requests, {new:,} new tokens",
        **found,
        "whole_s": seconds,
        "whole_requests_s": count / seconds,
    }


def prompt(setup: Setup) -> list[int]:
    return torch.randint(0, setup.model.config.vocab_size, (setup.prompt,)).tolist()
