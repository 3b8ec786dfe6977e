"""The command as a process on full disks, without a home, and with readers that leave."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import tiny

SRC = Path(__file__).parents[2] / "src"
OWN = ["--task=passkey", "--enable_nacl_evict", "--model_name=mine"]
#: Of someone whose number is in no list of users, as containers have it.
NOBODY = "import pwd\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid\n"


def command(*flags: str, cwd: Path = SRC, shell: str = '"$@"', **more) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of eval_llama3.py, started by a shell."""
    more["env"] = {**os.environ, **more.pop("env", {})}
    done = subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, str(SRC / "eval_llama3.py"), *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )
    return done.returncode, done.stdout, done.stderr


def predicted(out: Path) -> list[int]:
    lines = (out / "mine" / "preds_passkey.jsonl").read_text().splitlines()
    return [json.loads(line)["id"] for line in lines]


def test_a_disk_that_is_full_at_the_last_write_loses_nothing(flags, evaluate, tmp_path):
    out = tmp_path / "out"
    evaluate(*OWN, "--stop_idx=2", f"--output_dir={tmp_path / 'other'}")
    room = (tmp_path / "other" / "mine" / "run.json").stat().st_size - 20  # what was summed up
    status, _, error = command(
        *flags,
        *OWN,
        "--stop_idx=2",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert status == 2
    assert error.endswith(f"\nerror: cannot write {out / 'mine' / 'run.json'}: File too large\n")
    assert predicted(out) == [0, 1]
    assert json.loads((out / "mine" / "run.json").read_text())["settings"]["model"] == "tiny"
    assert sorted(path.name for path in (out / "mine").iterdir()) == [
        ".lock", "preds_passkey.jsonl", "run.json", "stats_passkey.jsonl"
    ]  # fmt: skip
    evaluate(*OWN)
    assert predicted(out) == [*range(8)]


def test_a_disk_that_fills_while_predicting_keeps_whole_predictions(flags, evaluate, tmp_path):
    evaluate(*OWN, "--stop_idx=1")
    size = (tmp_path / "out" / "mine" / "stats_passkey.jsonl").stat().st_size
    room = max(2000, 4 * size)  # more than the record, fewer than all statistics
    status, _, error = command(
        *flags, *OWN, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    )
    assert status == 2
    assert "stats_passkey.jsonl: File too large; what was predicted is kept, and the" in error
    assert error.splitlines()[-1].startswith("error: cannot write to ")
    evaluate(*OWN)
    assert predicted(tmp_path / "out") == [*range(8)]


def test_a_reader_of_the_answers_may_leave(flags, tmp_path):
    status, out, error = command(*flags, *OWN, "--verbose", shell='set -o pipefail; "$@" | head -1')
    assert status == 0 and out.startswith("mine #0: ") and out.count("\n") == 1
    assert "Error" not in error and "Retrieve.PassKey: 8/8" in error
    assert predicted(tmp_path / "out") == [*range(8)]


def test_a_container_without_a_home_or_a_stderr_predicts(flags, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NOBODY)
    here = tmp_path / "here"
    here.mkdir()
    env = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1,2", "MKL_NUM_THREADS": "2"}
    status, out, error = command(
        *flags, *OWN, cwd=here, env=env, shell='unset HOME PPNLP_HOME; "$@" 2>&-'
    )
    assert (status, error) == (0, "") and "every run: " in out
    assert predicted(tmp_path / "out") == [*range(8)]
    assert not [*here.iterdir()], "no directory is named ~"
    record = json.loads((tmp_path / "out" / "mine" / "run.json").read_text())
    assert record["threads"] == 1, "that attention takes"
    status, _, error = command("--data_dir=~/data", env=env, shell='unset HOME; "$@"')
    assert (status, error) == (
        2,
        "error: argument --data_dir: ~/data: there is no home directory that ~ could stand for\n",
    )


def test_a_home_is_meant_by_a_tilde_in_every_flag(tmp_path, data):
    home, here = tmp_path / "home of mine", tmp_path / "here"
    here.mkdir()
    tiny.write_llama(home / "tiny")
    (home / "data").symlink_to(data)
    paths = ["--model_path=~/tiny/", "--data_dir=~/data", "--output_dir=~/runs"]
    status, _, error = command(*paths, *OWN, "--stop_idx=1", cwd=here, env={"HOME": str(home)})
    assert status == 0, error
    assert predicted(home / "runs") == [0]
    assert not [*here.iterdir()]
    settings = json.loads((home / "runs" / "mine" / "run.json").read_text())["settings"]
    assert settings["model_path"] == str(home / "tiny")
