"""What `pip install .` makes of the repository: the library, and nothing beside it."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Of the pinned packages, those that the library does not import.
SCORES_ONLY = {"rouge-score", "rouge", "jieba", "fuzzywuzzy", "levenshtein", "wonderwords"}
SCRIPTS_ONLY = {"pyyaml", "matplotlib", "pypdf", "prompt-toolkit", *SCORES_ONLY}
BUILD_ONLY = {"setuptools", "setuptools-scm", "wheel"}
# The kernels' compiler, on a GPU; what tests compare with; another extra, and what it depends on.
OPTIONAL = {"paddle": {"triton"}, "torch": {"triton", "peft", "lm-eval", "datasets", "pyarrow"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a copy of the sources was installed, without what it depends on."""
    copy, site = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline]
    done = subprocess.run([*command, "--target", site, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


def installed(site: Path, code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python outside the checkout, on what was installed."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site), **environment},
        capture_output=True,
        text=True,
    )


def requirements(site: Path, extra: str) -> dict[str, Requirement]:
    """By name: those of the library, or those that an extra adds."""
    (found,) = metadata.distributions(name="kvevict", path=[str(site)])
    every = [Requirement(text) for text in found.requires]
    chosen = [
        r for r in every if (not r.marker if not extra else f'"{extra}"' in str(r.marker or ""))
    ]
    return {canonicalize_name(r.name): r for r in chosen}


def pinned(name: str) -> dict[str, str]:
    lines = (raw.split("#")[0].strip() for raw in (ROOT / name).read_text().splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in pins}


def test_every_module_of_the_library_and_no_other(site: Path) -> None:
    assert {p.name for p in site.iterdir() if p.suffix != ".dist-info"} == {"kvevict"}
    sources = {p.relative_to(ROOT / "src") for p in (ROOT / "src/kvevict").rglob("*.py")}
    assert {p.relative_to(site) for p in (site / "kvevict").rglob("*.py")} == sources


def test_it_is_imported_from_there_with_its_integrations(site: Path) -> None:
    done = installed(site, "import kvevict.backends.common as c; print(c.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(site), done.stderr


@pytest.mark.parametrize(
    ("file", "extra"), [("requirements.txt", "paddle"), ("requirements-torch.txt", "torch")]
)
def test_it_asks_for_what_the_pinned_environments_have(site: Path, file: str, extra: str) -> None:
    pins, base, more = pinned(file), requirements(site, ""), requirements(site, extra)
    assert base.keys() | more.keys() == pins.keys() - SCRIPTS_ONLY - BUILD_ONLY - OPTIONAL[extra]
    for declared in (base, more):
        for name, requirement in declared.items():
            assert requirement.specifier.contains(pins[name], prereleases=True), name


def test_the_adapter_is_missed_in_one_sentence(site: Path) -> None:
    code = """
from kvevict import InputError, models
try:
    models.load_tokenizer("smollm2-135m-longctx")
except InputError as error:
    print(error)
"""
    done = installed(site, code)
    assert done.stdout.startswith("smollm2-135m-longctx needs ")
    assert "comes with a checkout, not with the installed package" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
