"""scripts/setup.sh and the requirement files."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([^ ;]+)(?: ; (.+?))? \\$", re.MULTILINE)


def pins(lock: str) -> dict[str, str]:
    """Package → version that a lock file gives to this Python on this machine."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    found = PIN.findall(text)
    return {name: version for name, version, mark in found if not mark or Marker(mark).evaluate()}


def direct(requirements: str) -> list[Requirement]:
    lines = (ROOT / requirements).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in (raw.split("#")[0].strip() for raw in lines) if line]


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_direct_requirement_is_locked_at_its_version(name):
    locked = pins(f"{name}.lock")
    for requirement in direct(f"{name}.txt"):
        version = locked[canonicalize_name(requirement.name)]
        assert str(requirement.specifier) == f"=={version}", requirement.name


def test_torch_environment_has_the_library_at_the_same_versions():
    ours = {r.name: r for r in direct("requirements.txt")}
    shared = [r for r in direct("requirements-torch.txt") if r.name in ours]
    assert len(shared) >= 5
    assert all(str(r) == str(ours[r.name]) for r in shared)


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_lock_is_hashed_and_free_of_local_places(lock):
    text = (ROOT / lock).read_text(encoding="utf-8")
    entries = re.findall(r"^[^\s#].*\n(?:    --hash=sha256:[0-9a-f]{64}.*\n)*", text, re.MULTILINE)
    assert len(entries) > 5
    for entry in entries:
        assert PIN.match(entry), f"not pinned: {entry[:80]}"
        assert "--hash" in entry, f"no hash: {entry[:80]}"
    assert not re.search(r"://|\s@\s|^-|/(home|tmp|work|opt|root|usr)/", text, re.MULTILINE)


def test_locks_agree_with_each_other():
    locked, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    both = locked.keys() & dev.keys()
    assert both
    assert {name: locked[name] for name in both} == {name: dev[name] for name in both}


def test_lock_pins_all_that_the_installed_packages_require():
    locked = pins("requirements.lock")
    waiting = [canonicalize_name(r.name) for r in direct("requirements.txt")]
    if shutil.which("nvidia-smi"):
        waiting.remove("paddlepaddle")
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        assert metadata.version(name) == locked.get(name), f"{name} is installed, not as locked"
        for requirement in map(Requirement, metadata.requires(name) or []):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    assert len(seen) > 50


@pytest.mark.parametrize("script", ["scripts/setup.sh", "scripts/test.sh", ".ci/run"])
def test_shell_syntax(script):
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository at a path with spaces that has nothing to install and a tiny model module."""
    root = tmp_path / "a clone"
    (root / "src/kvevict").mkdir(parents=True)
    (root / "src/kvevict/models.py").write_text("open('fetched', 'a').write('.')\n")
    (root / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", root / "scripts")
    for name in ("requirements.lock", "requirements-dev.lock"):
        (root / name).write_text("# nothing\n")
    return root


def setup(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the clone's setup.sh from elsewhere; on the CPU unless the environment says more."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CDPATH")}
    return subprocess.run(
        [shutil.which("bash"), str(clone / "scripts/setup.sh"), *arguments],
        cwd=clone.parent,
        env={**clean, "KVEVICT_CPU": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def old_python(path: Path, minor: int = 7) -> Path:
    """A Python that is real but for its version number."""
    code = f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, {minor}); $2"\n'
    return executable(path, f"#!/bin/sh\n{code}")


def test_second_run_changes_nothing_and_a_broken_run_is_repaired(clone):
    first = setup(clone, "--dev", PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    assert (clone / "fetched").read_text() == "."
    found = subprocess.run(
        [clone / ".venv/bin/python", "-c", "import kvevict; print(*kvevict.__path__)"],
        cwd=clone.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout == f"{clone / 'src/kvevict'}\n", found.stderr
    by_hand = clone / ".venv/by hand"
    by_hand.touch()

    start = time.monotonic()
    second = setup(clone, "--dev", PYTHON="/no/such/python")
    seconds = time.monotonic() - start
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert seconds < 2

    (clone / "requirements.lock").write_text("not a requirement !\n")
    third = setup(clone, PYTHON=sys.executable)
    assert third.returncode != 0
    assert "not a requirement" in third.stderr
    assert (clone / "fetched").read_text() == ".."
    assert by_hand.exists()

    (clone / "requirements.lock").write_text("# mended\n")
    fourth = setup(clone, PYTHON=sys.executable)
    assert fourth.returncode == 0, fourth.stderr
    assert not by_hand.exists()
    assert not (clone / ".venv.unfinished").exists()


def test_unsuitable_python_gets_one_sentence(clone, tmp_path):
    old = old_python(tmp_path / "old" / "python3")
    done = setup(clone, PYTHON=str(old))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"PYTHON={old}" in done.stderr
    assert "3.9 to 3.12" in done.stderr
    assert not (clone / ".venv").exists()


def test_no_suitable_python_on_the_path_gets_one_sentence(clone, tmp_path):
    old = old_python(tmp_path / "bin" / "python3")
    for tool in ("bash", "cat", "cksum", "dirname", "sh"):
        (old.parent / tool).symlink_to(shutil.which(tool))
    done = setup(clone, PATH=str(old.parent))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "install Python 3.11" in done.stderr
    assert not (clone / ".venv").exists()


def test_python_too_old_for_pytorch_gets_one_sentence(clone, tmp_path):
    executable(clone / ".venv/bin/python", "#!/bin/sh\nexec cat\n")
    assert setup(clone).returncode == 0
    for name in ("requirements-torch.txt", "requirements-dev.txt"):
        (clone / name).touch()
    done = setup(clone, "--with-torch", PYTHON=str(old_python(tmp_path / "python", 9)))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "3.10 to 3.12" in done.stderr
    assert not (clone / ".venv-torch").exists()


def test_unknown_argument_gets_one_sentence(clone):
    done = setup(clone, "--gpu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--gpu" in done.stderr


@pytest.mark.parametrize(
    "driver, part", [("11.8", "cu118"), ("12.8", "cu126"), ("12.9", "cu129"), ("13.1", "cu130")]
)
def test_gpu_machine_asks_for_the_gpu_wheel_alone(clone, tmp_path, driver, part):
    # The environment's Python records what pip is asked for: nothing here can run the wheel.
    shutil.copy(ROOT / "requirements.lock", clone)
    recorder = '#!/bin/sh\n[ "$2" = pip ] || exit 0\necho "$@"\ncat\n'
    executable(clone / ".venv/bin/python", recorder)
    smi = executable(tmp_path / "bin/nvidia-smi", f"#!/bin/sh\necho '| CUDA Version: {driver} |'\n")
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"

    done = setup(clone, KVEVICT_CPU="", PATH=path)
    assert done.returncode == 0, done.stderr
    version = pins("requirements.lock")["paddlepaddle"]
    assert f"packages/stable/{part}/ paddlepaddle-gpu=={version}\n" in done.stdout
    assert "uninstall -qq -y paddlepaddle\n" in done.stdout
    assert not re.search("^paddlepaddle==", done.stdout, re.MULTILINE)
    assert re.search("^paddlenlp==", done.stdout, re.MULTILINE)

    forced = setup(clone, KVEVICT_CPU="1", PATH=path)
    assert forced.returncode == 0, forced.stderr
    assert "uninstall -qq -y paddlepaddle-gpu\n" in forced.stdout
    assert "paddlepaddle-gpu==" not in forced.stdout
    assert re.search("^paddlepaddle==", forced.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "answer, status, words",
    [("echo '| CUDA Version: 11.4 |'", 2, "KVEVICT_CPU=1"), ("exit 9", 0, "CPU wheel")],
)
def test_gpu_that_cannot_be_used(clone, tmp_path, answer, status, words):
    executable(clone / ".venv/bin/python", "#!/bin/sh\nexec cat\n")
    smi = executable(tmp_path / "bin/nvidia-smi", f"#!/bin/sh\n{answer}\n")
    done = setup(clone, KVEVICT_CPU="", PATH=f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == status
    assert words in done.stderr
