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
    """What a file asks for on this machine."""
    lines = (ROOT / requirements).read_text(encoding="utf-8").splitlines()
    stripped = (line.split("#")[0].strip() for line in lines)
    found = [Requirement(line) for line in stripped if line]
    return [r for r in found if not r.marker or r.marker.evaluate()]


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_direct_requirement_is_locked_at_its_version(name):
    locked = pins(f"{name}.lock")
    for requirement in direct(f"{name}.txt"):
        version = locked[canonicalize_name(requirement.name)]
        assert str(requirement.specifier) == f"=={version}", requirement.name


def test_torch_environment_has_the_library_at_the_same_versions():
    ours = {r.name: r for r in direct("requirements.txt") if r.name != "triton"}
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
    for name in ("torch", "kvpress", "dev"):
        (clone / f"requirements-{name}.txt").touch()
    done = setup(clone, "--with-torch", PYTHON=str(old_python(tmp_path / "python", 9)))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "3.10 to 3.12" in done.stderr
    assert not (clone / ".venv-torch").exists()


def test_unknown_argument_gets_one_sentence(clone):
    done = setup(clone, "--gpu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--gpu" in done.stderr


def nvidia_smi(path: Path, driver: str, *capabilities: str) -> Path:
    """A stand-in that answers the two questions of setup.sh."""
    answers = f"""case $1 in
    --query-gpu=compute_cap) printf '%s\\n' {" ".join(capabilities)} ;;
    *) echo '| NVIDIA-SMI 1.2      Driver Version: 3.4      CUDA Version: {driver}     |' ;;
esac
"""
    return executable(path, "#!/bin/sh\n" + answers)


def gpu_setup(clone: Path, smi: Path, **environment: str) -> subprocess.CompletedProcess:
    path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
    return setup(clone, **{"KVEVICT_CPU": "", "PATH": path, **environment})


@pytest.fixture
def recording(clone: Path) -> Path:
    """A clone whose Python prints what pip is asked for: nothing here can run a GPU's wheel."""
    shutil.copy(ROOT / "requirements.lock", clone)
    recorder = '#!/bin/sh\n[ "$2" = pip ] || exit 0\necho "$@"\ncat\n'
    executable(clone / ".venv/bin/python", recorder)
    return clone


@pytest.mark.parametrize(
    "driver, capabilities, part",
    [
        ("11.8", ["8.0"], "cu118"),
        ("11.8", ["7.5", "8.9"], "cu118"),
        ("11.8", [], "cu118"),  # an nvidia-smi that cannot say
        ("12.0", ["8.0"], "cu126"),
        ("12.2", ["9.0"], "cu126"),
        ("12.4", ["9.0"], "cu126"),
        ("12.6", ["8.0"], "cu126"),
        ("12.8", ["9.0"], "cu126"),
        ("12.9", ["10.0"], "cu129"),
        ("13.0", ["9.0"], "cu130"),
        ("13.1", ["12.0"], "cu130"),
    ],
)
def test_gpu_machine_asks_for_the_gpu_wheel_and_triton(
    recording, tmp_path, driver, capabilities, part
):
    smi = nvidia_smi(tmp_path / "bin/nvidia-smi", driver, *capabilities)
    done = gpu_setup(recording, smi)
    assert done.returncode == 0, done.stderr
    version = pins("requirements.lock")["paddlepaddle"]
    assert f"packages/stable/{part}/ paddlepaddle-gpu=={version}\n" in done.stdout
    assert "uninstall -qq -y paddlepaddle paddlepaddle-gpu\n" in done.stdout
    assert not re.search("^paddlepaddle==", done.stdout, re.MULTILINE)
    assert re.search("^triton==", done.stdout, re.MULTILINE)
    assert re.search("^paddlenlp==", done.stdout, re.MULTILINE)
    assert gpu_setup(recording, smi).stdout == ""

    forced = gpu_setup(recording, smi, KVEVICT_CPU="1")
    assert forced.returncode == 0, forced.stderr
    assert "uninstall -qq -y paddlepaddle paddlepaddle-gpu\n" in forced.stdout
    assert "paddlepaddle-gpu==" not in forced.stdout
    assert re.search("^paddlepaddle==", forced.stdout, re.MULTILINE)
    assert not re.search("^triton==", forced.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "driver, capabilities, words",
    [
        ("11.4", ["8.0"], "older than CUDA 11.8"),
        ("11.8", ["9.0"], "no code for a card of compute capability 9.0"),
        ("11.8", ["8.0", "10.0", "9.0"], "capability 10.0"),
    ],
)
def test_gpu_that_no_wheel_fits(recording, tmp_path, driver, capabilities, words):
    done = gpu_setup(recording, nvidia_smi(tmp_path / "bin/nvidia-smi", driver, *capabilities))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr and "KVEVICT_CPU=1" in done.stderr


@pytest.mark.parametrize(
    "answer", ["exit 9", "echo no devices", "echo 'CUDA Version: 12.6'; exit 9"]
)
def test_a_failing_nvidia_smi_makes_no_gpu_environment(recording, tmp_path, answer):
    smi = executable(tmp_path / "bin/nvidia-smi", f"#!/bin/sh\n{answer}\n")
    done = gpu_setup(recording, smi)
    assert done.returncode == 0
    assert "CPU wheel" in done.stderr
    assert re.search("^paddlepaddle==", done.stdout, re.MULTILINE)
    repaired = gpu_setup(recording, nvidia_smi(smi, "12.6", "8.0"))
    assert "packages/stable/cu126/ paddlepaddle-gpu==" in repaired.stdout


@pytest.mark.parametrize("compiler, told", [("/no/such/cc", 1), ("false", 1), ("true", 0)])
def test_a_machine_that_builds_no_c_is_told_once(recording, tmp_path, compiler, told):
    smi = nvidia_smi(tmp_path / "bin/nvidia-smi", "12.6", "8.0")
    done = gpu_setup(recording, smi, CC=compiler)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no C compiler or no Python.h") == told
    again = gpu_setup(recording, smi, CC=compiler)
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize("script", ["setup.sh --gpu", "demo.sh --no", "download_dataset.sh --no"])
def test_scripts_find_their_place(clone, script):
    """Started by a relative path, where ``CDPATH`` leads elsewhere and there is no HOME."""
    name, argument = script.split()
    shutil.copy(ROOT / "scripts" / name, clone / "scripts")
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    done = subprocess.run(
        ["bash", f"scripts/{name}", argument],
        cwd=clone,
        env={**environment, "CDPATH": f".:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"unknown argument {argument}" in done.stderr
