"""Requests a second: what is composed of what, on a tiny model on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "scripts/bench"


@pytest.fixture(scope="module")
def setup():
    """A tiny model with prompts of 200 tokens, to be answered by 25."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        from bench_setup import make_setup

        sizes = {"tokens": 300, "prompt": 200, "layers": 2, "steps": 4, "repeats": 2, "whole": 3}
        yield make_setup(Namespace(tiny=True, **sizes))


def test_steps_are_timed_in_the_middle_of_each_part_of_the_answer(setup):
    import request_rows
    from decode_rows import WARM

    from kvevict.engine import Batch

    stand_in = request_rows.maker(setup, request_rows.EQUAL, 200)
    batch = Batch([stand_in(seed) for seed in range(2)], 200)
    reserved = [layer.moves for layer in batch.sessions[0].cache.layers]
    for place in range(request_rows.PLACES):
        assert request_rows.at(setup, batch, 200, place) > 0
        for session in batch.sessions:
            timed = 2  # half of the setup's steps
            first = session.cache.seen - setup.prompt - timed
            assert first + timed / 2 == pytest.approx(200 * (place + 0.5) / 4, abs=1)
            tails = [layer.tail for layer in session.cache.layers]
            assert tails == [first + timed] * setup.layers and first >= WARM
    assert reserved == [layer.moves for layer in batch.sessions[0].cache.layers]


def test_caches_hold_what_the_methods_leave_and_room_for_the_answer(setup):
    import request_rows

    from kvevict.engine import prefill

    for workload in (request_rows.FULL, request_rows.EQUAL, request_rows.INT8):
        held = request_rows.maker(setup, workload, 25)(0).cache
        ids = request_rows.prompt(setup)
        (session,) = prefill(setup.decoder, ids, [workload.policy()])
        session.reserve(25)
        assert held.nbytes == session.cache.nbytes, workload.label
        assert held.seen == session.cache.seen == 200


def test_fewer_sequences_are_tried_where_memory_ends(setup):
    from decode_rows import NotRecorded
    from rate_rows import most, weights

    tried = []

    def run(count: int) -> dict:
        tried.append(count)
        if count > 50:
            raise torch.cuda.OutOfMemoryError
        if count > 40:
            raise NotRecorded
        return {"sequences": count}

    one = (setup.limit_bytes - weights(setup)) / 64.5
    assert most(setup, one, run, less=0.8) == {"sequences": 40}
    assert tried == [64, 51, 40]
    assert most(setup, one, lambda count: run(1000)) == {"error": "out of memory"}


def bench_decode(out: Path, *flags: str) -> subprocess.CompletedProcess:
    """A trial of it on the CPU."""
    command = [sys.executable, BENCH / "bench_decode.py", "--tiny", *flags, "--out", out]
    env = {
        "PYTHONPATH": str(BENCH.parents[1] / "src"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_a_request_takes_its_share_of_two_measured_parts(tmp_path):
    flags = ["--parts", "requests", "--whole", "3", "--steps", "4", "--repeats", "2"]
    done = bench_decode(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "decode.json").read_text())
    assert len(rows) == 9, done.stdout
    full = rows[0]["requests_s"]
    for row in rows:
        seconds = row["sequences"] * row["prefill_s"] + row["new_tokens"] * row["step_ms"] / 1e3
        assert row["requests_s"] == pytest.approx(row["sequences"] / seconds)
        floors = row["sequences"] * row["floor_prefill_s"]
        floors += row["new_tokens"] * row["floor_ms"] / 1e3
        assert row["floor_requests_s"] == pytest.approx(row["sequences"] / floors)
    assert rows[1]["beside_full"] == pytest.approx(rows[1]["requests_s"] / full)
    assert [row.get("goal") for row in rows[:4]] == [None, 1.2, None, 2.7]
    (whole,) = [row for row in rows if "whole_s" in row]
    assert whole["sequences"] == 3 and whole["whole_requests_s"] == 3 / whole["whole_s"]


def test_no_row_is_begun_when_the_time_is_over(tmp_path):
    flags = ["--parts", "requests,rates", "--limit_s", "0.001", "--steps", "4"]
    done = bench_decode(tmp_path, *flags)
    assert done.returncode == 0 and not (tmp_path / "decode.json").exists()
    assert done.stdout.count("not begun") == 2
