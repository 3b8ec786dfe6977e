"""The same command on Paddle and on PyTorch, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny

from benchmarks import synthetic
from kvevict.backends import FRAMEWORKS
from kvevict.environment import THREAD_VARIABLES, default_threads
from kvevict.models import load_tokenizer
from tests.interpreters import interpreter

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-longctx"
LENGTHS = {"passkey": 350, "needle": 600, "number_string": 1100}
LIMIT = 300  # seconds; a process that hangs fails the test
METHODS = ("full", "nacl", "snapkv", "adakv", "laprox", "expected_attention", "kvzip")


def start(
    framework: str, *arguments: object, launcher: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen:
    """eval_llama3.py as a process, its threads not set unless in ``environment``."""
    command = [*launcher, "eval_llama3.py", f"--framework={framework}", *map(str, arguments)]
    inherited = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES}
    return subprocess.Popen(
        [interpreter(framework), *command],
        cwd=ROOT / "src",
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """What it printed to stderr, once it has exited with ``status``."""
    out, error = process.communicate(timeout=LIMIT)
    assert process.returncode == status, out + error
    return error


def results(out: Path, kind: str = "preds") -> dict[tuple[str, str], list[dict]]:
    """Lines by policy and task, whatever the runs are called."""
    found = {}
    for record in out.glob("*/run.json"):
        policy = json.loads(record.read_text())["settings"]["policy"]["name"]
        for file in record.parent.glob(f"{kind}_*.jsonl"):
            task = file.stem[len(kind) + 1 :]
            found[policy, task] = [json.loads(line) for line in file.read_text().splitlines()]
    return found


def test_both_frameworks_give_the_same_tokens(tmp_path):
    for framework in FRAMEWORKS:
        interpreter(framework)
    encode = load_tokenizer(MODEL).encode
    for task, length in LENGTHS.items():
        row = synthetic.make_example(task, 1, length, count_tokens=lambda text: len(encode(text)))
        tiny.write_lines(tmp_path / "data" / f"{task}.jsonl", row)
    processes = [  # side by side, a core each
        start(
            framework,
            f"--model_path={MODEL}",
            f"--data_dir={tmp_path / 'data'}",
            f"--output_dir={tmp_path / framework}",
            f"--task={','.join(LENGTHS)}",
            f"--method={','.join(METHODS)}",
            "--keep_ratio=0.2",
            "--min_eviction_seqlen=64",
            "--device=cpu",
            OMP_NUM_THREADS="1",
        )
        for framework in FRAMEWORKS
    ]
    for process in processes:
        finish(process)
    ours, theirs = (results(tmp_path / framework) for framework in FRAMEWORKS)
    assert set(ours) == {(method, task) for method in METHODS for task in LENGTHS}
    assert ours == theirs
    assert len({json.dumps(rows) for rows in ours.values()}) > len(LENGTHS), "eviction shows"
    for task in LENGTHS:
        (row,) = ours["full", task]
        assert str(row["ground_truth"]) in row["prediction"]
    ours, theirs = (results(tmp_path / framework, "stats") for framework in FRAMEWORKS)
    for (policy, task), (stats,) in ours.items():
        assert stats["cache_entries"] == theirs[policy, task][0]["cache_entries"]
        assert LENGTHS[task] - 60 < stats["prompt_tokens"] <= LENGTHS[task]


@pytest.fixture
def small(llama, data, tmp_path) -> list[str]:
    """Flags of a run on the tiny model in ``out``."""
    directories = {"model_path": llama, "data_dir": data, "output_dir": tmp_path / "out"}
    named = [f"--{name}={path}" for name, path in directories.items()]
    return [*named, "--task=passkey,number_string", "--min_eviction_seqlen=32", "--method=nacl"]


def test_torchrun_gives_the_predictions_of_one_process(small, tmp_path):
    finish(start("pytorch", *small, f"--output_dir={tmp_path / 'one'}"))
    whole = results(tmp_path / "one")
    for more in (), ("--standalone",):
        out = tmp_path / f"two{len(more)}"
        torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", *more)
        finish(start("pytorch", *small, f"--output_dir={out}", "--device=cpu", launcher=torchrun))
        assert results(out) == whole
        (record,) = out.glob("*/run.json")
        record = json.loads(record.read_text())
        assert (record["processes"], record["threads"]) == (2, max(1, default_threads() // 2))
        assert not [*out.glob("*/*.rank*")]
    assert [len(rows) for rows in whole.values()] == [8, 8]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_record_names_the_framework_and_where_it_ran(framework, small, tmp_path):
    finish(start(framework, *small, "--stop_idx=1", "--device=cpu"))
    (record,) = (tmp_path / "out").glob("*/run.json")
    record = json.loads(record.read_text())
    assert record["settings"].items() >= {"dtype": "float32", "device": "cpu"}.items()
    assert record["device"] == "cpu"
    assert record["peak_device_bytes"] is None
    packages = {"paddle": {"paddle", "paddlenlp"}, "pytorch": {"torch", "transformers"}}[framework]
    assert set(record["versions"]) - {"triton"} == {"python", "kvevict", "numpy", *packages}
    # Runs from before there was a choice keep their names.
    named = {} if framework == "paddle" else {"framework": "pytorch"}
    assert {k: v for k, v in record["settings"].items() if k == "framework"} == named


def test_each_dtype_is_a_run_of_its_own(small, tmp_path):
    small += ["--device=cpu", "--stop_idx=1"]
    for dtype in ("bfloat16", "float16"):
        finish(start("pytorch", *small, f"--dtype={dtype}"))
    records = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*/run.json")]
    assert {record["settings"]["dtype"] for record in records} == {"bfloat16", "float16"}
    (name, *_) = (path.name for path in (tmp_path / "out").iterdir())
    error = finish(start("pytorch", *small, f"--model_name={name}", "--dtype=float32"), status=2)
    assert f"{name} holds a run with other settings (dtype); give another" in error


def test_paddle_on_a_cpu_refuses_what_it_cannot_compute_in(small, tmp_path):
    error = finish(start("paddle", *small, "--device=cpu", "--dtype=bfloat16"), status=2)
    assert error == "error: Paddle computes in float32 on a CPU, not in bfloat16\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_unusable_device_leaves_nothing_behind(framework, small, tmp_path):
    error = finish(start(framework, *small, "--device=gpu:99"), status=2)
    name = {"paddle": "Paddle", "pytorch": "PyTorch"}[framework]
    assert error.startswith(f"error: {name} cannot use device 'gpu:99': ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
