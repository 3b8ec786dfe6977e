"""What a ``--model_path`` may be, and the checkpoint that it names."""

from __future__ import annotations

import re

from kvevict.errors import InputError
from kvevict.files import expand
from kvevict.models.builtin import BUILTINS, builtin_dir
from kvevict.models.checkpoint import PICKLED, Checkpoint, pickle_error, read_directory
from kvevict.models.gguf import read_gguf
from kvevict.models.tokenizer import Tokenizer

DEFAULT_MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct"


def load_tokenizer(model_path: str) -> Tokenizer:
    """The tokenizer of a model alone, whatever its weights; see :func:`read_checkpoint`."""
    return _read(str(model_path)).tokenizer


def read_checkpoint(model_path: str) -> Checkpoint:
    """The checkpoint that ``model_path`` names, checked as far as that needs no weight.

    Args:
        model_path: a built-in name (``BUILTINS``), a directory in Hugging Face or PaddleNLP layout,
            a ``.gguf`` file, or a hub id.

    Raises:
        InputError: there is no such model, it cannot be read, or it is not one that can be run.
    """
    checkpoint = _read(model_path)
    checkpoint.check()
    return checkpoint


def _read(model_path: str) -> Checkpoint:
    if model_path in BUILTINS:
        return read_directory(builtin_dir(model_path))
    path = expand(model_path)
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
