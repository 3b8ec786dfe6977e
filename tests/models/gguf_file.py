"""GGUF files of small models, written by the gguf package, with any metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from tests.reference_llama import DIMS

BOS, EOT = 298, 299
MERGES = ["h e", "l l", "he ll", "Ġ Ġ", "1 2", "12 3", "3 4"]


def write_gguf(
    path: Path, weights: dict, arch: str = "llama", dims: dict = DIMS, **changes: Any
) -> Path:
    """A file of a model of ``dims``, whose weights are by Hugging Face's names.

    Args:
        changes: ``quant``, a type for the matrices; ``extra``, tensors by GGUF's names;
            ``permute``, whether q and k are turned in pairs; ``specials``, the last two tokens;
            all else are metadata, ``arch``'s where they begin with a point, and None leaves one
            out.
    """
    quant, extra = changes.pop("quant", None), changes.pop("extra", {})
    permute = changes.pop("permute", False)
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*sorted(ByteLevel.alphabet()), *merged, "hello"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), 298)]
    tokens += changes.pop("specials", ["<|begin_of_text|>", "<|eot_id|>"])
    metadata = {
        ".context_length": dims["max_position_embeddings"],
        ".embedding_length": dims["hidden_size"],
        ".block_count": dims["num_hidden_layers"],
        ".feed_forward_length": dims["intermediate_size"],
        ".attention.head_count": dims["num_attention_heads"],
        ".attention.head_count_kv": dims["num_key_value_heads"],
        ".attention.layer_norm_rms_epsilon": dims.get("rms_norm_eps", 1e-6),
        ".rope.freq_base": dims.get("rope_theta", 20000.0),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 298 + [3, 3],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOT,
        **changes,
    }
    writer = gguf.GGUFWriter(path, arch)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add.update({str: writer.add_string, list: writer.add_array})
    for key, value in metadata.items():
        if value is not None:
            add[type(value)](f"{arch}{key}" if key.startswith(".") else key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, dims["num_hidden_layers"])
    for name, array in weights.items():
        stem, _, kind = name.rpartition(".")
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        if permute and stem.split(".")[-1] in heads:
            array = paired(array, dims[heads[stem.split(".")[-1]]])
        stem = f"{names.get_name(stem)}.{kind}"
        if quant is None or array.ndim == 1:
            writer.add_tensor(stem, array)
        else:
            writer.add_tensor(stem, gguf.quants.quantize(array, quant), raw_dtype=quant)
    for name, array in extra.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + head_dim/2 of each head side by side, as llama.cpp's converter puts them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
