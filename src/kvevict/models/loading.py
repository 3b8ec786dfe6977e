"""What a `--model_path` may be, and how it becomes a model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvevict import runtime
from kvevict.errors import InputError
from kvevict.models.builtin import BUILTINS, builtin_dir
from kvevict.models.checkpoint import PICKLED, Checkpoint, pickle_error, read_directory
from kvevict.models.gguf import read_gguf
from kvevict.models.tokenizer import Tokenizer

DEFAULT_MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct"


@dataclass
class LoadedModel:
    """A model ready to run: `model` is PaddleNLP's `LlamaForCausalLM` in eval mode."""

    model: Any
    tokenizer: Tokenizer
    name: str
    max_positions: int
    eos_ids: tuple[int, ...]


def load(model_path: str, dtype: str | None = None, device: str | None = None) -> LoadedModel:
    """Load a model.

    `model_path` is a built-in name (`BUILTINS`), a directory in Hugging Face or PaddleNLP layout,
    a `.gguf` file, or a hub id. `dtype` is float32, bfloat16 or float16; by default float32 on
    the CPU, and on a GPU bfloat16 where it has that, else float16. `device` is Paddle's name of
    one ("cpu", "gpu:0"), by default the current one. Raises `InputError` with one sentence.
    """
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise InputError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
    runtime.configure()
    if device is not None:
        _set_device(device)
    checkpoint = read_checkpoint(str(model_path))
    from kvevict.models.paddle_llama import build

    model = build(checkpoint, dtype or _default_dtype())
    return LoadedModel(
        model=model,
        tokenizer=checkpoint.tokenizer,
        name=Path(os.path.abspath(model_path)).name,
        max_positions=model.config.max_position_embeddings,
        eos_ids=checkpoint.eos_ids,
    )


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


def _default_dtype() -> str:
    import paddle

    if not paddle.get_device().startswith("gpu"):
        return "float32"
    return "bfloat16" if paddle.amp.is_bfloat16_supported() else "float16"


def _set_device(device: str) -> None:
    import paddle

    try:
        paddle.set_device(device)
    except Exception as error:  # Paddle raises several kinds, over many lines
        raise InputError(f"device {device!r} cannot be used with this Paddle") from error
