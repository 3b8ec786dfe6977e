"""What every command owes its user, whatever becomes of its streams."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.reporting.runs import write_run

SRC = Path(__file__).parents[1] / "src"
LINES = 20_000  # more than a pipe holds

#: A command that prints to both streams for a while and then leaves a file.
WORK = f"""
import sys
from pathlib import Path
from kvevict.command import command

@command()
def main():
    file = open(sys.argv[1], "w")
    for number in range({LINES}):
        print("line", number)
        print("progress", number, file=sys.stderr)
    file.write("all of it")
    file.close()

sys.exit(main())
"""


def run(
    tmp_path: Path, redirections: str = "", code: str = WORK, **environment: str
) -> subprocess.CompletedProcess:
    """A command as a shell starts it."""
    script = tmp_path / "work.py"
    script.write_text(code)
    shell = f'"{sys.executable}" "{script}" "{tmp_path}/done" {redirections}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}"],
        env={**os.environ, "PYTHONPATH": str(SRC), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "redirections",
    [
        "2>/dev/null | head -n 1",
        "2>&1 >/dev/null | head -n 1",
        ">/dev/null 2>/dev/full",
        ">/dev/null 2>&-",
        "2>/dev/null >&-",
        "<&- >&- 2>&-",
    ],
)
def test_work_goes_on_when_a_reader_is_gone(tmp_path, redirections):
    done = run(tmp_path, redirections)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").read_text() == "all of it", "and nothing of the streams in it"


def test_results_that_could_not_be_printed_are_an_error(tmp_path):
    done = run(tmp_path, "2>&1 >/dev/full | tail -n 1")
    assert done.stdout == "error: cannot write to standard output: No space left on device\n"
    assert done.returncode == 2
    assert (tmp_path / "done").read_text() == "all of it"


def ending(tmp_path: Path, statement: str) -> tuple[int, str]:
    """Exit status and stderr of a command that does nothing but this."""
    code = (
        "import sys\nfrom kvevict.command import command\nfrom kvevict.errors import InputError\n"
        f"@command()\ndef main():\n    {statement}\nsys.exit(main())\n"
    )
    done = run(tmp_path, code=code)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise InputError('no  such\\n   model')", "error: no  such model\n"),
        ("raise FloatingPointError('not finite')", "error: not finite\n"),
        ("open('/nowhere/x')", "error: /nowhere/x: No such file or directory\n"),
        ("open(b'/nowhere/\\xff')", "error: /nowhere/\\udcff: No such file or directory\n"),
        ("raise OSError('no place')", "error: no place\n"),
        ("raise KeyboardInterrupt", "\nstopped; no file is left half-written\n"),
    ],
)
def test_what_a_user_can_set_right_is_one_sentence(tmp_path, statement, message):
    status = 130 if "Interrupt" in statement else 2
    assert ending(tmp_path, statement) == (status, message)


@pytest.mark.parametrize(
    ("library", "statement", "wanted"),
    [
        ("numpy", "numpy.empty(2**60, 'u1')", "1.00 EiB"),
        ("paddle", "paddle.empty([2**60], 'uint8')", f"{2**60} bytes"),
        ("torch", "torch.empty(2**60, dtype=torch.uint8)", f"{2**60} bytes"),
    ],
)
def test_memory_that_is_not_there_is_one_sentence(tmp_path, library, statement, wanted):
    if not find_spec(library):
        pytest.skip(f"{library} is not in this environment")
    status, error = ending(tmp_path, f"import {library}; {statement}")
    said = f"error: out of memory where {wanted} more were wanted; no file is left half-written\n"
    assert status == 2 and error.endswith(said) and "Traceback" not in error


@pytest.mark.parametrize("statement", ["1 / 0", "raise RuntimeError('allocate 1 GiB')"])
def test_a_fault_of_our_own_keeps_its_traceback(tmp_path, statement):
    status, error = ending(tmp_path, statement)
    assert status == 1 and "Traceback" in error


def test_ctrl_c_ends_in_a_word_on_what_is_next(tmp_path):
    (tmp_path / "work.py").write_text(
        "import sys, time\nfrom kvevict.command import command\n"
        "@command('go on')\ndef main():\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "work.py")],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "\nstopped; go on\n")


ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
COMMANDS = (
    "eval_llama3.py",
    "compute_scores.py",
    "report.py",
    "../data/construct_synthetic_dataset.py",
)


@pytest.mark.parametrize("environment", [ASCII, C_LOCALE])
def test_texts_reach_every_terminal(tmp_path, environment):
    code = WORK.replace('"line", number', '"∞ – 中 \\udcff"').replace(str(LINES), "1")
    done = run(tmp_path, code=code, **environment)
    assert (done.returncode, done.stderr) == (0, "progress 0\n")
    assert done.stdout == r"\u221e \u2013 \u4e2d \udcff" + "\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reaches_every_terminal(command):
    done = subprocess.run(
        [sys.executable, command, "--help"],
        cwd=SRC,
        env={**os.environ, **ASCII},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and "usage: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["../data/construct_synthetic_dataset.py", "--task=passkey", "--out_dir={tmp}", "--force"],
         "passkey.jsonl"),
        (["compute_scores.py", "--output_dir={runs}", "--json={tmp}/scores"], "scores"),
        (["report.py", "--output_dir={runs}", "--out={tmp}"], "mean.png"),
        (["report.py", "scores", "--output_dir={runs}", "--out={tmp}/scores"], "scores"),
    ],
)  # fmt: skip
def test_a_full_disk_is_named_and_keeps_what_was_there(tmp_path, arguments, written):
    write_run(tmp_path / "runs" / "one", "nacl", [True, False])
    out = tmp_path / "out"
    out.mkdir()
    (out / written).write_text("old")
    places = {"tmp": out, "runs": tmp_path / "runs"}
    done = subprocess.run(
        [sys.executable, *(part.format(**places) for part in arguments)],
        cwd=SRC,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(f"error: cannot write {out}/\\S+: File too large\n", done.stderr)
    assert [path.read_text() for path in out.iterdir()] == ["old"]


def test_a_long_wait_says_what_it_is_for():
    code = (
        "import time; from kvevict.waiting import waiting\n"
        "with waiting('nobody', 0.1): pass\n"
        "with waiting('the moon', 0.1): time.sleep(0.5)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True)
    assert time.monotonic() - began < 60
    assert done.stderr == "waiting for the moon\n"
