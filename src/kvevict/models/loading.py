"""What a `--model_path` may be, and how it becomes a model."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kvevict import runtime
from kvevict.errors import InputError
from kvevict.models.builtin import BUILTINS, builtin_dir
from kvevict.models.checkpoint import PICKLED, Checkpoint, pickle_error, read_directory
from kvevict.models.gguf import read_gguf
from kvevict.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kvevict.session import Decoder

DEFAULT_MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct"
DTYPES = ("float32", "bfloat16", "float16")
FRAMEWORKS = {"paddle": ("paddle", "paddlenlp"), "pytorch": ("torch", "transformers")}
SETUP = {
    "paddle": "makes .venv, whose bin/python has it",
    "pytorch": "--with-torch makes .venv-torch, whose bin/python has it",
}


@dataclass
class LoadedModel:
    """A model ready to run.

    `model` is the `LlamaForCausalLM` of PaddleNLP or transformers in eval mode, `dtype` the type of
    its weights, `device` what it lies on: "cpu", or the name of a GPU.
    """

    model: Any
    framework: str
    dtype: str
    device: str
    tokenizer: Tokenizer
    name: str
    max_positions: int
    eos_ids: tuple[int, ...]

    def decoder(self) -> Decoder:
        """The model taken apart for `kvevict.generate`."""
        if self.framework == "pytorch":
            from kvevict.integrations.transformers import TransformersDecoder

            return TransformersDecoder(self.model)
        from kvevict.integrations.paddlenlp import PaddleNLPDecoder

        return PaddleNLPDecoder(self.model)


def load(
    model: str | Path | Checkpoint,
    dtype: str | None = None,
    device: str | None = None,
    framework: str = "paddle",
) -> LoadedModel:
    """Load a model.

    `model` is a built-in name (`BUILTINS`), a directory in Hugging Face or PaddleNLP layout, a
    `.gguf` file, a hub id, or a checkpoint that was read before. `dtype` is float32, bfloat16 or
    float16; by default float32 on the CPU, and on a GPU bfloat16 where it has that, else float16.
    `device` is "cpu", "gpu" or "gpu:<n>", by default a GPU where there is one. `framework` is
    "paddle" or "pytorch". Raises `InputError` with one sentence.
    """
    place, dtype = use_device(device, dtype, framework)
    checkpoint = model if isinstance(model, Checkpoint) else read_checkpoint(str(model))
    backend = _backend(framework)
    return LoadedModel(
        model=backend.build(checkpoint, dtype, place),
        framework=framework,
        dtype=dtype,
        device=backend.device_name(place),
        tokenizer=checkpoint.tokenizer,
        name=Path(os.path.abspath(checkpoint.source if checkpoint is model else model)).name,
        max_positions=checkpoint.config["max_position_embeddings"],
        eos_ids=checkpoint.eos_ids,
    )


def use_device(device: str | None, dtype: str | None, framework: str) -> tuple[Any, str]:
    """What `device` names in `framework`, made current, and the dtype to use there; see `load`."""
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not {dtype}")
    if device is not None and not re.fullmatch(r"cpu|gpu(:[0-9]+)?", device):
        raise InputError(f"there is no device {device!r}: devices are cpu, gpu, gpu:<n>")
    backend = _backend(framework)
    place = backend.use_device(device)
    return place, backend.choose_dtype(dtype, place)


def load_tokenizer(model_path: str) -> Tokenizer:
    """The tokenizer of a model alone, without its weights; see `load`."""
    return read_checkpoint(str(model_path)).tokenizer


def read_checkpoint(model_path: str) -> Checkpoint:
    """The checkpoint that `model_path` names; see `load`."""
    if model_path in BUILTINS:
        return read_directory(builtin_dir(model_path))
    path = Path(model_path).expanduser()
    if path.is_dir():
        return read_directory(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return read_gguf(path)
        if path.suffix in PICKLED:
            raise pickle_error(path)
        raise InputError(f"{path} is neither a model directory nor a .gguf file")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model_path) and path.suffix != ".gguf":
        from kvevict.models.hub import download

        return read_directory(download(model_path))
    raise InputError(
        f"there is no model {model_path!r}: give a directory, a .gguf file, a hub id like "
        f"{DEFAULT_MODEL}, or a built-in ({', '.join(BUILTINS)})"
    )


def _backend(framework: str) -> ModuleType:
    """`paddle_llama` or `torch_llama`: the same four functions over either framework."""
    if framework not in FRAMEWORKS:
        raise InputError(f"framework must be {' or '.join(FRAMEWORKS)}, not {framework}")
    for package in FRAMEWORKS[framework]:
        if find_spec(package) is None:
            raise InputError(
                f"framework {framework} needs the package {package}, which {sys.executable} lacks; "
                f"bash scripts/setup.sh {SETUP[framework]}"
            )
    runtime.configure(framework=framework)
    module = {"paddle": "paddle_llama", "pytorch": "torch_llama"}[framework]
    return import_module(f"kvevict.models.{module}")
