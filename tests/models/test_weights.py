"""Quantised weights are refused for what they are, not for a file that is not whole."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from kvevict.errors import InputError
from kvevict.models.weights import read_safetensors

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def write(path: Path, tensors: dict[str, str]) -> Path:
    """A file of tensors ``[8, 16]``, by name and type, all nought."""
    header, end = {}, 0
    for name, kind in tensors.items():
        start, end = end, end + 128 * SIZES[kind]
        header[name] = {"dtype": kind, "shape": [8, 16], "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(end))
    return path


def test_shapes_are_known_before_anything_is_read(tmp_path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": "F32", "b": "BF16"})
    tensors = read_safetensors(path)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (8, 16), "b": (8, 16)}
    assert all(tensor().dtype == np.float32 for tensor in tensors.values())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"q.qweight": "I32", "q.qzeros": "I32", "q.scales": "F16", "q.g_idx": "I32"}, "with GPTQ"),
        ({"q.qweight": "I32", "q.qzeros": "I32", "q.scales": "F16"}, "with GPTQ or AWQ"),
        ({"q.weight": "F8_E4M3"}, "with FP8"),
        ({"q.weight": "F8_E5M2", "q.weight_scale_inv": "F32"}, "with FP8"),
        ({"q.weight": "U8", "q.weight.absmax": "F32"}, "with bitsandbytes"),
        ({"q.weight": "U8"}, "with bitsandbytes or another format of 8-bit integers"),
        ({"q.weight": "I8", "q.SCB": "F32"}, "with bitsandbytes"),
        ({"q.weight_packed": "I32", "q.weight_scale": "BF16"}, "with compressed-tensors"),
    ],
)
def test_quantised_weights(tmp_path, tensors, words) -> None:
    path = write(tmp_path / "m.safetensors", {"model.norm.weight": "F32", **tensors})
    with pytest.raises(InputError) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"{path}: the weights are quantised {words}, which is not")


def test_other_types_are_named(tmp_path) -> None:
    path = write(tmp_path / "m.safetensors", {"model.norm.weight": "F32", "odd": "I32"})
    with pytest.raises(InputError, match="odd has the type I32, and only floating point"):
        read_safetensors(path)
