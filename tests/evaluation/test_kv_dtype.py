"""Evaluations with a quantised cache: as processes, in both frameworks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny

from kvevict.backends import FRAMEWORKS
from kvevict.quantised import BITS, GROUP, KV_DTYPES
from tests.interpreters import interpreter

SRC = Path(__file__).parents[2] / "src"
LIMIT = 300  # seconds; a process that hangs fails the test


def run(framework: str, llama: Path, data: Path, out: Path, *flags: str) -> tuple[str, str]:
    """What a whole evaluation printed."""
    places = {"model_path": llama, "data_dir": data, "output_dir": out}
    given = [f"--{name}={place}" for name, place in places.items()]
    given += ["--device=cpu", "--min_eviction_seqlen=32", "--task=passkey", *flags]
    return command(framework, "eval_llama3.py", f"--framework={framework}", *given)


def command(framework: str, *words: str) -> tuple[str, str]:
    ran = subprocess.run(
        [interpreter(framework), *words],
        cwd=SRC,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, ran.stderr


def records(out: Path) -> dict[tuple[str, str | None], Path]:
    found = {}
    for file in out.glob("*/run.json"):
        policy = json.loads(file.read_text())["settings"]["policy"]
        found[policy["name"], policy.get("kv_dtype")] = file.parent
    return found


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sweep_over_types(framework, llama, data, tmp_path):
    methods = ("full", "snapkv", "laprox")
    kinds = (None, *KV_DTYPES)
    flags = ("--method=full,snapkv,laprox", "--keep_ratio=0.5", "--stop_idx=3")
    kinds_flag = "--kv_dtype=auto,int8,fp8,int4,int2"
    printed, _ = run(framework, llama, data, tmp_path, *flags, kinds_flag)
    runs = records(tmp_path)
    assert set(runs) == {(method, kind) for method in methods for kind in kinds}
    for (_, kind), directory in runs.items():
        assert kind is None or f"-{kind}_" in directory.name
        assert directory.name in printed
        for row in lines(directory / "stats_passkey.jsonl"):
            exact = row["cache_entries"] * tiny.ENTRY_BYTES
            if kind is None:
                assert row["cache_bytes"] == exact
            else:  # codes, and scales that groups which are not full make no cheaper
                codes = exact * BITS[kind] // 32
                scale = (2 if BITS[kind] == 8 else 4) * row["cache_entries"]
                least = codes + scale * (1 + tiny.HEAD_DIM / GROUP)
                most = least + 4 * tiny.HEAD_DIM * tiny.LAYERS * tiny.KV_HEADS
                assert least <= row["cache_bytes"] <= most
            assert row["full_cache_bytes"] >= exact
    scores, _ = command(framework, "compute_scores.py", f"--output_dir={tmp_path}")
    for kind in KV_DTYPES:
        assert f"kv_dtype {kind}" in scores


@pytest.mark.parametrize("compress", ["prompt", "context"])
def test_unpacked_caches_answer_alike_and_count_the_same_bytes(llama, data, tmp_path, compress):
    """By the framework at hand; heads of one layer differ in length, and groups are not full."""
    flags = ["--method=full,adakv", "--keep_ratio=0.3", "--kv_dtype=auto,int8,int4,int2"]
    flags += ["--stop_idx=3", "--decode_together", f"--compress={compress}"]
    found = {}
    for name, more in (("packed", []), ("unpacked", ["--unpack"])):
        run(next(iter(FRAMEWORKS)), llama, data, tmp_path / name, *flags, *more)
        found[name] = {
            key: [
                [row["prediction"] for row in lines(directory / "preds_passkey.jsonl")],
                [row["cache_bytes"] for row in lines(directory / "stats_passkey.jsonl")],
            ]
            for key, directory in records(tmp_path / name).items()
        }
    assert len(found["packed"]) == 8
    assert found["packed"] == found["unpacked"]


def test_both_frameworks_predict_the_same(llama, data, tmp_path):
    for framework in FRAMEWORKS:
        interpreter(framework)
    found = {}
    for framework in FRAMEWORKS:
        flags = ("--method=snapkv", "--stop_idx=3", "--kv_dtype=int8,fp8,int4,int2")
        run(framework, llama, data, tmp_path / framework, *flags)
        found[framework] = {
            key: lines(directory / "preds_passkey.jsonl")
            for key, directory in records(tmp_path / framework).items()
        }
    assert len(set(map(len, found.values()))) == 1
    one, other = found.values()
    assert one == other


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--kv_dtype=int3",), "takes int8, fp8, int4, int2 or auto, not 'int3'"),
        (("--kv_dtype=",), "takes int8, fp8, int4, int2 or auto, not ''"),
        (("--kv_dtype=int8", "--method=h2o"), "h2o evicts while decoding, and quantised entries"),
        (("--kv_dtype=fp8", "--method=snapkv", "--decode_slack=4"), "snapkv evicts while decoding"),
    ],
)
def test_what_cannot_be_is_one_sentence(evaluate, tmp_path, flags, sentence):
    error = evaluate("--task=passkey", *flags, status=2)
    assert sentence in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_bad_type_in_yaml_names_the_entry(evaluate, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("- {method: full}\n- {method: snapkv, kv_dtype: [int8, q4]}\n")
    error = evaluate("--task=passkey", f"--config={file}", status=2)
    assert "entry 2: kv_dtype must be 'int8' or 'fp8' or 'int4' or 'int2', not 'q4'" in error
