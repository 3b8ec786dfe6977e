"""What `environment.configure` does to a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvevict import backends, environment
from kvevict.errors import InputError

SRC = Path(__file__).resolve().parents[1] / "src"
CHOSEN = [*environment.THREAD_VARIABLES, "MKL_DEBUG_CPU_TYPE"]
WAITING = ["KMP_BLOCKTIME", "GOMP_SPINCOUNT"]
OTHERS = [*environment._HOMES, *WAITING, "LOCAL_RANK", "FLAGS_selected_gpus"]


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess:
    """`code` in a new process whose environment lacks all that `configure` sets."""
    inherited = {key: value for key, value in os.environ.items() if key not in {*CHOSEN, *OTHERS}}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=SRC,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def environment_after(call: str, **environment: str) -> dict[str, str]:
    code = f"import json, os\nfrom kvevict import environment\n{call}\n"
    code += "print(json.dumps(dict(os.environ)))"
    done = fresh(code, **environment)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    return {name: found.get(name) for name in CHOSEN}


def threads(count: int) -> dict[str, str]:
    return dict.fromkeys(environment.THREAD_VARIABLES, str(count))


def test_all_usable_cores_and_no_chatter():
    pytest.importorskip("paddle")
    code = (
        "import os; from kvevict import backends, environment; backends.backend('paddle')\n"
        "from paddlenlp.utils.log import logger; logger.info('chatter'); logger.warning('news')\n"
        "print(*(os.environ[v] for v in environment.THREAD_VARIABLES))"
    )
    done = fresh(code)
    cores = environment.default_threads()
    assert done.stdout == f"{cores} {cores} {cores}\n"
    assert "news" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("variable", ["PADDLE_LOCAL_SIZE", "LOCAL_WORLD_SIZE"])
def test_cores_are_shared_among_local_processes(monkeypatch, variable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(environment, "CPU_QUOTA", Path("/nowhere"))
    for processes, share in {"1": 12, "4": 3, "5": 2, "16": 1}.items():
        monkeypatch.setenv(variable, processes)
        assert environment.default_threads() == share


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("400000 100000", 4), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 12)],
)
def test_a_containers_quota_counts(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(environment, "CPU_QUOTA", tmp_path / "cpu.max")
    assert environment.default_threads() == 12
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert environment.default_threads() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert environment.default_threads() == max(1, cores // 2)


def test_threads_of_pytorch():
    pytest.importorskip("torch")
    code = (
        "from kvevict import backends; backends.backend('pytorch')\n"
        "import torch; print(torch.get_num_threads())"
    )
    assert fresh(code, OMP_NUM_THREADS="3").stdout == "3\n"
    cores = environment.default_threads()
    assert fresh(code).stdout == f"{cores}\n"
    launched = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1"}
    assert fresh(code, **launched).stdout == f"{cores}\n"


def test_explicit_threads_win_over_the_environment():
    pytest.importorskip("paddle")
    found = environment_after("environment.configure(threads=3)", OMP_NUM_THREADS="7")
    assert found.items() >= threads(3).items()


def test_what_the_user_has_set_stays():
    pytest.importorskip("paddle")
    found = environment_after(
        "environment.configure()", MKL_NUM_THREADS="1", MKL_DEBUG_CPU_TYPE="4"
    )
    assert found == {**threads(1), "MKL_DEBUG_CPU_TYPE": "4"}


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_that_wait_leave_the_cores(given):
    """Of either OpenMP, unless the user wants it otherwise."""
    code = "import os; from kvevict import environment; environment.configure()\n"
    code += f"print(*(os.environ[name] for name in {WAITING}))"
    done = fresh(code, **given)
    assert done.stdout.split() == ["1", given.get("GOMP_SPINCOUNT", "1000")]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"OMP_NUM_THREADS": "3"}, [3, 3, 3]),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2"}, [3, 2, 3]),
        ({"OMP_NUM_THREADS": " 3 ", "MKL_NUM_THREADS": ""}, [3, 3, 3]),
        ({"OMP_NUM_THREADS": "3,2"}, [3, 3, 3]),
        ({"OMP_NUM_THREADS": "", "FLAGS_paddle_num_threads": "2"}, [2, 2, 2]),
    ],
)
def test_attention_takes_the_threads_that_were_given(given, found):
    code = (
        "from kvevict import environment; environment.configure()\n"
        "print(environment.cpu_threads())\n"
        "print([environment.integer(v, 0) for v in environment.THREAD_VARIABLES])"
    )
    assert fresh(code, **given).stdout == f"{found[0]}\n{found}\n"


@pytest.mark.parametrize("variable", [*environment.THREAD_VARIABLES, "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["1.0", "ALL", "-1", "0", "1e3", "0x2", "9" * 5000, "²"])
def test_what_is_no_number_is_refused_by_name(monkeypatch, variable, value):
    monkeypatch.setattr(os, "environ", {variable: value})
    with pytest.raises(InputError, match=f"variable {variable} is '{value}', where a whole number"):
        environment.configure()


def test_more_threads_than_any_machine_has_are_refused(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    with pytest.raises(InputError, match="a whole number from 1 to 1024 is needed; unset it"):
        environment.cpu_threads()


def test_variables_that_are_empty_say_nothing(monkeypatch):
    for variable in ("LOCAL_WORLD_SIZE", "PADDLE_LOCAL_SIZE", "LOCAL_RANK", "FLAGS_selected_gpus"):
        monkeypatch.setenv(variable, "")
    assert environment.default_threads() >= 1
    assert environment.local_gpu() == 0


def test_each_process_of_a_launcher_has_its_own_gpu(monkeypatch):
    code = (
        "import os; from kvevict import environment; environment.configure()\n"
        "print(environment.local_gpu(), os.environ.get('FLAGS_selected_gpus'))"
    )
    assert fresh(code).stdout == "0 None\n"
    assert fresh(code, LOCAL_RANK="3").stdout == "3 3\n", "Paddle reads the second under torchrun"
    assert fresh(code, LOCAL_RANK="1", FLAGS_selected_gpus="5").stdout == "5 5\n"


def test_a_home_that_cannot_be_written_is_replaced_by_one_that_goes(tmp_path):
    code = (
        "import os; from kvevict import environment; environment.provide_homes()\n"
        "print(*(os.environ.get(v, '-') for v in environment._HOMES), sep='\\n')"
    )
    nothing = dict.fromkeys(environment._HOMES, "")
    assert fresh(code, HOME=str(tmp_path), **nothing).stdout == "-\n" * 3
    assert not [*tmp_path.iterdir()], "nothing is made where nothing is needed"
    for home in ("/dev/null/x", "/dev/null", "relative"):
        places = fresh(code, HOME=home, **nothing).stdout.split()
        assert len(set(places)) == 3 and all(map(os.path.isabs, places))
        assert not any(map(os.path.exists, places)), "they go with the process"
    own = dict.fromkeys(environment._HOMES, "/dev/null/own")
    assert fresh(code, HOME="/dev/null/x", **own).stdout == "/dev/null/own\n" * 3


def test_the_launchers_own_thread_count_is_not_the_users():
    pytest.importorskip("paddle")
    found = environment_after("environment.configure()", PADDLE_LOCAL_SIZE="1", OMP_NUM_THREADS="1")
    assert found.items() >= threads(environment.default_threads()).items()


def test_slow_path_of_mkl_on_amd():
    pytest.importorskip("paddle")
    amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    found = environment_after("environment.configure()")
    assert found["MKL_DEBUG_CPU_TYPE"] == ("5" if amd else None)


def test_importing_the_library_does_not_import_paddle():
    done = fresh("import sys, kvevict.models, kvevict.environment; print('paddle' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_versions_name_what_runs():
    paddle = pytest.importorskip("paddle")
    found = backends.versions("paddle")
    assert set(found) == {"python", "kvevict", "paddle", "paddlenlp", "numpy"}
    assert found["paddle"] == paddle.__version__


def test_peak_memory_counts_what_was_touched():
    code = (
        "from kvevict import environment; a = environment.peak_process_bytes()\n"
        "x = b'x' * (200 * 2**20); del x\n"
        "print(environment.peak_process_bytes() - a)"
    )
    assert 180 * 2**20 < int(fresh(code).stdout) < 260 * 2**20


def test_no_device_memory_on_the_cpu():
    paddle = pytest.importorskip("paddle")
    if paddle.get_device() != "cpu":
        pytest.skip("runs on a GPU")
    assert backends.backend("paddle").peak_device_bytes() is None
