"""A checkpoint written as a directory in Hugging Face layout, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kvevict.models.checkpoint import Checkpoint
from kvevict.models.weights import Tensors

_SAFETENSORS = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}  # its word, bytes
# The release of transformers whose layout this is. Where it is not named, newer ones take the
# tokenizer for Mistral's and warn of it.
_LAYOUT = "4.43.0"
_CHUNK = 1 << 22  # values rounded at a time


def write_directory(checkpoint: Checkpoint, path: Path, dtype: str = "float32") -> None:
    """Write ``checkpoint`` into the directory ``path``, weights as float32 or bfloat16."""
    config = {key: value for key, value in checkpoint.config.items() if value is not None}
    generation = {"eos_token_id": list(checkpoint.eos_ids)}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for role in ("bos", "eos", "pad"):
        token_id = config.get(f"{role}_token_id")
        if isinstance(token_id, int):
            tokenizer[f"{role}_token"] = checkpoint.tokenizer.backend.id_to_token(token_id)
            generation.setdefault(f"{role}_token_id", token_id)
    if checkpoint.chat is not None:
        tokenizer["chat_template"] = checkpoint.chat.source
    for file, value in {
        "config.json": {**config, "torch_dtype": dtype, "transformers_version": _LAYOUT},
        "tokenizer_config.json": tokenizer,
        "generation_config.json": generation,
    }.items():
        (path / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    checkpoint.tokenizer.backend.save(str(path / "tokenizer.json"))
    with (path / "model.safetensors").open("wb") as file:
        _write_safetensors(checkpoint.tensors, file, dtype)


def _write_safetensors(tensors: Tensors, file: BinaryIO, dtype: str) -> None:
    kind, width = _SAFETENSORS[dtype]
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + width * math.prod(tensor.shape)
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        values = np.ascontiguousarray(tensor(), dtype=np.float32).reshape(-1)
        for first in range(0, len(values), _CHUNK):
            chunk = values[first : first + _CHUNK]
            file.write(_bfloat16(chunk) if dtype == "bfloat16" else chunk)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 ``values``, rounded to nearest, ties to even: uint16."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
