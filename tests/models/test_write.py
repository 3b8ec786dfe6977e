"""Directories in Hugging Face layout as this library writes them, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from kvevict.models.chat import ChatTemplate
from kvevict.models.checkpoint import Checkpoint
from kvevict.models.tokenizer import FastTokenizer
from kvevict.models.weights import LazyTensor, read_safetensors
from kvevict.models.write import write_directory

TEMPLATE = "{{ messages[0].content }}<end>"


def checkpoint(tensors: dict[str, np.ndarray]) -> Checkpoint:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.BPE({"a": 0, "<end>": 1}, []))
    config = {"model_type": "llama", "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    readers = {name: LazyTensor(a.shape, lambda a=a: a) for name, a in tensors.items()}
    chat = ChatTemplate(TEMPLATE, {}, "made here")
    return Checkpoint("made here", config, readers, FastTokenizer(backend), (1, 0), chat)


def neighbours(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bfloat16 values below and above in magnitude: float32 whose lower half is empty."""
    below = values.view(np.uint32) & np.uint32(0xFFFF0000)
    return below.view(np.float32), (below + np.uint32(0x10000)).view(np.float32)


def test_bfloat16_is_the_nearest_and_of_two_the_even(tmp_path):
    rng = np.random.default_rng(8)
    size = (1 << 22) + 1000  # more than is rounded at a time
    values = (rng.normal(size=size) * 10.0 ** rng.integers(-30, 30, size)).astype(np.float32)
    values.view(np.uint32)[::7] |= 0x8000
    values.view(np.uint32)[::7] &= 0xFFFF8000  # halfway
    write_directory(checkpoint({"weight": values.reshape(8, -1)}), tmp_path, "bfloat16")

    written = read_safetensors(tmp_path / "model.safetensors")["weight"]()
    assert (written.shape, written.dtype) == ((8, size // 8), np.float32)
    below, above = neighbours(values)
    to_below = np.abs(values.astype(np.float64) - below)
    to_above = np.abs(values.astype(np.float64) - above)
    below_is_even = below.view(np.uint32) >> 16 & 1 == 0
    expected = np.where(
        to_below == to_above,
        np.where(below_is_even, below, above),
        np.where(to_below < to_above, below, above),
    )
    np.testing.assert_array_equal(written.reshape(-1), expected)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16")])
def test_the_safetensors_package_reads_what_is_written(tmp_path, dtype, kind):
    rng = np.random.default_rng(2)
    tensors = {
        f'layer.{i}."quoted" ä': rng.integers(-99, 99, shape).astype(np.float32)
        for i, shape in enumerate([(3, 5), (7,), (2, 3, 4), (1, 1)])
    }
    tensors["transposed"] = rng.integers(-9, 9, (4, 6)).astype(np.float32).T
    write_directory(checkpoint(tensors), tmp_path, dtype)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(tensors)
        assert file.metadata() == {"format": "pt"}
        for name, array in tensors.items():
            assert file.get_slice(name).get_dtype() == kind
            assert file.get_slice(name).get_shape() == list(array.shape)
    for name, read in read_safetensors(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(read(), tensors[name])


def test_what_ends_a_turn_and_how_to_ask_are_written(tmp_path):
    write_directory(checkpoint({}), tmp_path, "bfloat16")

    def read(file: str) -> dict:
        return json.loads(Path(tmp_path, file).read_text())

    assert read("generation_config.json") == {"eos_token_id": [1, 0], "pad_token_id": 0}
    assert read("config.json")["torch_dtype"] == "bfloat16"
    assert "bos_token_id" not in read("config.json")
    settings = read("tokenizer_config.json")
    assert settings["chat_template"] == TEMPLATE
    assert (settings["eos_token"], settings["pad_token"]) == ("<end>", "a")
