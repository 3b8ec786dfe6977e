"""The command as processes: killed, continued, and shared by ``paddle.distributed.launch``."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvevict.environment import THREAD_VARIABLES, default_threads

SRC = Path(__file__).parents[2] / "src"
TASKS = ["--enable_nacl_evict", "--task=passkey,number_string"]
LIMIT = 300  # seconds; a process that hangs fails the test


def start(*command: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=SRC,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(out: Path) -> int:
    """Predictions that are there, a begun one included."""
    return sum(f.read_bytes().count(b'{"id"') for f in out.glob("*/preds_*.jsonl"))


def wait_for_predictions(out: Path, count: int, process: subprocess.Popen) -> None:
    """Return once ``count`` of them are there."""
    limit = time.monotonic() + LIMIT
    while lines(out) < count:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def whole(evaluate, predictions, tmp_path):
    """The predictions of one process that nobody stopped."""
    evaluate(*TASKS)
    found = predictions()
    assert [text.count(b"\n") for text in found.values()] == [8, 8]
    shutil.move(tmp_path / "out", tmp_path / "whole")
    return found


def test_killed_or_interrupted_a_run_goes_on_where_it_stopped(
    flags, evaluate, predictions, tmp_path, whole
):
    seed = random.randrange(1000)
    draw = random.Random(seed)
    for how, count in (signal.SIGKILL, draw.randint(1, 6)), (signal.SIGINT, draw.randint(8, 11)):
        before = lines(tmp_path / "out")
        process = start("eval_llama3.py", *flags, *TASKS)
        # At least one of its own: it is not stopped while it still imports.
        wait_for_predictions(tmp_path / "out", max(count, before + 1), process)
        time.sleep(draw.random() / 20)
        if how == signal.SIGKILL:
            process.send_signal(signal.SIGSTOP)
            assert "in use by another process" in evaluate(*TASKS, status=2)
        process.send_signal(how)
        _, error = process.communicate(timeout=LIMIT)
        assert predictions() != whole, f"seed {seed}: it was stopped too late to tell"
    assert process.returncode == 130
    assert error.endswith("stopped; the same command goes on from here\n")
    assert "Traceback" not in error
    evaluate(*TASKS)
    assert predictions() == whole, f"seed {seed}"


def launch(processes: int, logs: Path, flags: list[str]) -> subprocess.Popen:
    module = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    return start(*module, "--log_dir", str(logs), "eval_llama3.py", *flags, *TASKS)


def test_processes_share_the_examples_and_give_the_predictions_of_one(
    flags, evaluate, predictions, tmp_path, whole
):
    evaluate(*TASKS, "--start_idx=1", "--stop_idx=3")

    process = launch(2, tmp_path / "two", flags)
    wait_for_predictions(tmp_path / "out", 7, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(random.choice(children)), signal.SIGKILL)
    process.communicate(timeout=LIMIT)  # the launcher stops the other one
    assert process.returncode != 0
    assert predictions() != whole

    process = launch(3, tmp_path / "three", flags)
    out, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out + error
    assert predictions() == whole
    assert "Retrieve.Number (1 of 3): " in out, "the first one's progress is seen"
    (run,) = (tmp_path / "out").iterdir()
    assert not [*run.glob("*.rank*")]
    record = json.loads((run / "run.json").read_text())
    assert record["processes"] == 3
    assert record["threads"] == max(1, default_threads() // 3)
    assert record["tasks"]["number_string"]["examples"] == 8


#: The command, with something wrong in the second process alone.
ONE_FAILS = """
import os, sys
sys.path.insert(0, os.getcwd())
if os.environ["PADDLE_TRAINER_ID"] == "1":
    os.environ["OMP_NUM_THREADS"] = "many"
import eval_llama3
sys.exit(eval_llama3.main(sys.argv[1:]))
"""


def test_where_one_process_fails_all_end_with_its_message(flags, tmp_path):
    script, launcher = tmp_path / "one_fails.py", ["-m", "paddle.distributed.launch"]
    script.write_text(ONE_FAILS)
    log = ["--nproc_per_node=2", f"--log_dir={tmp_path / 'log'}"]
    process = start(*launcher, *log, str(script), *flags, *TASKS)
    out, error = process.communicate(timeout=LIMIT)
    assert process.returncode != 0, out + error  # the launcher's choice of the processes' own
    message = "error: the environment variable OMP_NUM_THREADS is 'many', where a whole number "
    assert "rank 1 status failed" in out + error and "Traceback" not in out + error
    assert message in out + error
    assert message in (tmp_path / "log" / "workerlog.1").read_text()
    assert message not in (tmp_path / "log" / "workerlog.0").read_text()


def test_a_run_is_continued_in_its_dtype_and_on_its_kind_of_device_alone(
    flags, predictions, tmp_path
):
    own = ["eval_llama3.py", *flags, "--task=passkey", "--model_name=mine", "--device=cpu"]
    file = tmp_path / "out" / "mine" / "run.json"

    def run(*more: str) -> tuple[int, str]:
        process = start(*own, *more)
        _, error = process.communicate(timeout=LIMIT)
        return process.returncode, error

    assert run("--stop_idx=2")[0] == 0
    record, before = json.loads(file.read_text()), predictions()
    numerics = {"dtype": "float32", "device": "cpu"}
    assert record["settings"].items() >= numerics.items()

    record["settings"].update(dtype="bfloat16", device="gpu")
    file.write_text(json.dumps(record))
    status, error = run("--stop_idx=3")
    assert (status, error.count("\n")) == (2, 1)
    assert f"{file.parent} holds a run with other settings (device, dtype); give another" in error
    assert predictions() == before

    for key in numerics:  # as in a run from before they were recorded
        del record["settings"][key]
    record["versions"]["paddle"] = "2.6.2"
    file.write_text(json.dumps(record))
    assert run("--stop_idx=3")[0] == 0
    found = json.loads(file.read_text())
    assert found["settings"] == {**record["settings"], **numerics}
    assert found["earlier_versions"] == [record["versions"]]
    assert found["versions"]["paddle"] != "2.6.2"
    assert [text.count(b"\n") for text in predictions().values()] == [3]
