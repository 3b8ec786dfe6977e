"""GGUF files: the configuration in Hugging Face's keys, weights dequantised.

Metadata mean what they mean to llama.cpp, defaults included; what is not read here, and is there,
is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvevict.errors import InputError
from kvevict.models.chat import SPECIAL_TOKENS, ChatTemplate
from kvevict.models.checkpoint import Checkpoint
from kvevict.models.config import normalise_config
from kvevict.models.families import Family, by_gguf
from kvevict.models.gguf_tokenizer import gguf_tokenizer
from kvevict.models.weights import LazyTensor, Tensors

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_REQUIRED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_HARMLESS = ("tensor_data_layout", "rope.scaling.finetuned")
_FREQUENCIES = "rope_freqs.weight"
_CHUNK = 1 << 20  # values dequantised at a time
_PERMUTED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def read_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file; tensors are dequantised one by one when asked for.

    Raises:
        InputError: a damaged file, one of several parts, another family, metadata or a tokenizer
            that are not covered, or a quantisation that the gguf package cannot undo.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the parser trips over damage in many ways
        raise InputError(f"{path} is not a whole GGUF file: {error}") from error
    if fields.get("general.type", "model") != "model":
        raise InputError(f"{path} holds no model: its general.type is {fields['general.type']}")
    if fields.get("split.count", 1) > 1:
        raise InputError(
            f"{path} is one of {fields['split.count']} parts: llama-gguf-split --merge joins them"
        )
    family = by_gguf(fields.get("general.architecture"), str(path))
    config = _config(fields, reader.tensors, family, str(path))
    return Checkpoint(
        source=str(path),
        config=config,
        tensors=_tensors(reader.tensors, family, config, path),
        tokenizer=gguf_tokenizer(fields, path),
        eos_ids=_eos_ids(fields, family),
        chat=_chat_template(fields, path),
    )


def _chat_template(fields: dict[str, Any], path: Path) -> ChatTemplate | None:
    source, tokens = fields.get("tokenizer.chat_template"), fields.get("tokenizer.ggml.tokens", ())
    if source is None:
        return None
    ids = {name: fields.get(f"tokenizer.ggml.{name}_id") for name in SPECIAL_TOKENS}
    special = {name: tokens[i] for name, i in ids.items() if i in range(len(tokens))}
    return ChatTemplate(source, special, str(path))


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's reordering of query and key rows.

    Llama's GGUF files pair dimensions (2i, 2i+1) for the rotation, Hugging Face's layout pairs
    (i, i + head_dim/2). ``weight`` is ``[heads * head_dim, in]``, and so is the result.
    """
    rows, columns = weight.shape
    return (
        weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _config(fields: dict, tensors: list, family: Family, source: str) -> dict[str, Any]:
    prefix = f"{family.gguf}."
    given = {key[len(prefix) :]: v for key, v in fields.items() if key.startswith(prefix)}
    by_name = {tensor.name: tensor for tensor in tensors}
    config = {name: given.pop(key, None) for name, key in _REQUIRED.items()}
    for name, key in _REQUIRED.items():
        if config[name] is None:
            raise InputError(f"{source} lacks {prefix}{key}")
    heads = config["num_attention_heads"]
    config.update(
        architectures=[family.architecture],
        vocab_size=given.pop("vocab_size", len(fields.get("tokenizer.ggml.tokens", ()))),
        num_key_value_heads=given.pop("attention.head_count_kv", heads),
        tie_word_embeddings="output.weight" not in by_name,
        head_dim=given.pop("attention.key_length", None),
        rope_theta=given.pop("rope.freq_base", 10000.0),
        **{
            f"{name}_token_id": fields.get(f"tokenizer.ggml.{key}_token_id")
            for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items()
        },
    )
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        config[key] = _same_in_all_layers(config[key], f"{source}: {key}")
    window = given.pop("attention.sliding_window", 0)
    if window:
        config.update(sliding_window=window, use_sliding_window=True)
    factors = by_name.get(_FREQUENCIES)
    config["rope_scaling"] = _rope_scaling(given.pop, factors, f"{source}: {prefix}")
    config = normalise_config(config, source)
    constants = {
        "attention.value_length": config["head_dim"],
        "rope.dimension_count": config["head_dim"],
        "attention.causal": True,
    }
    for key, value in given.items():
        wanted = constants.get(key, value if key in _HARMLESS else 0)
        if value != wanted and value not in ("", []):
            raise InputError(f"{source}: {prefix}{key}={value!r} is not supported")
    return config


def _rope_scaling(take: Callable, factors: Any, where: str) -> dict[str, Any] | None:
    """Hugging Face's ``rope_scaling``; ``take`` returns what stands under a key, and removes it."""
    kind = take("rope.scaling.type", "linear")  # llama.cpp's default
    old = take("rope.scale_linear", 0.0)
    factor = take("rope.scaling.factor", old) or 1.0  # nought, too, is one
    attention = take("rope.scaling.attn_factor", 1.0)
    original = take("rope.scaling.original_context_length", None)
    if kind == "yarn":
        if factors is not None:
            raise InputError(f"{where}rope.scaling.type yarn excludes {_FREQUENCIES}")
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": take("rope.scaling.yarn_beta_fast", None),
            "beta_slow": take("rope.scaling.yarn_beta_slow", None),
            # llama.cpp multiplies YaRN's own term by it.
            "attention_factor": attention * (1.0 + 0.1 * math.log(max(factor, 1.0))),
        }
        for key in ("yarn_ext_factor", "yarn_attn_factor"):
            if take(f"rope.scaling.{key}", 1.0) not in (1.0, -1.0):  # -1: not said
                raise InputError(f"{where}rope.scaling.{key} is not supported but as 1")
        return {key: value for key, value in scaling.items() if value is not None}
    if attention != 1.0:
        raise InputError(f"{where}rope.scaling.attn_factor={attention!r} is not supported")
    if kind not in ("linear", "none"):
        return {"rope_type": kind}
    factor = factor if kind == "linear" else 1.0
    if factors is not None:
        divisors = factors.data.astype(np.float64).tolist()
        return {"rope_type": "factors", "factors": divisors, "factor": factor}
    return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None


def _same_in_all_layers(value: Any, what: str) -> Any:
    values = value if isinstance(value, list) else [value]
    if len(set(values)) != 1:
        raise InputError(f"{what} differs from layer to layer: {value}")
    return values[0]


def _dequantised(tensor: Any) -> np.ndarray:
    """The tensor as float32, some rows at a time: the gguf package copies what it works on."""
    from gguf.quants import dequantize

    whole = np.empty(tensor.shape[::-1], dtype=np.float32)
    rows = max(1, _CHUNK // int(tensor.shape[0]))
    for start in range(0, len(whole), rows):
        part = slice(start, start + rows)
        whole[part] = dequantize(tensor.data[part], tensor.tensor_type)
    return whole


def _tensors(tensors: list, family: Family, config: dict, path: Path) -> Tensors:
    """By Hugging Face's names; what has none keeps its own."""
    from gguf.quants import dequantize

    for kind, tensor in {tensor.tensor_type: tensor for tensor in tensors}.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError as error:
            raise InputError(
                f"{path}: quantisation {kind.name} of {tensor.name} is unknown"
            ) from error
    shapes, found = family.shapes(config), {}
    for tensor in tensors:
        name = _hugging_face(tensor.name)
        heads = _PERMUTED.get(name.split(".")[-2]) if family.permuted else None
        read = partial(_dequantised, tensor)
        if heads:
            read = partial(_unpermuted, read, config[heads])
        if not re.fullmatch(rf"{_FREQUENCIES}|blk\.\d+\.attn_rot_embd\.weight", tensor.name):
            shape = tuple(int(n) for n in reversed(tensor.shape))
            found[name if name in shapes else tensor.name] = LazyTensor(shape, read)
    return found


def _unpermuted(read: Callable[[], np.ndarray], heads: int) -> np.ndarray:
    return unpermute(read(), heads)


def _hugging_face(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in _BLOCK_NAMES:
        return f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}.{kind}"
    return f"{_NAMES.get(stem, stem)}.{kind}"


def _eos_ids(fields: dict, family: Family) -> tuple[int, ...]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [fields.get(f"tokenizer.ggml.{key}") for key in keys]
    tokens = fields.get("tokenizer.ggml.tokens", [])
    ids += [tokens.index(end) for end in family.ends if end in tokens]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))
