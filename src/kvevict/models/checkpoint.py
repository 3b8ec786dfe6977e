"""A checkpoint read from disk, and how a model directory is read, without any framework.

Every source (Hugging Face or PaddleNLP directory, GGUF file) becomes one `Checkpoint`: the
configuration in Hugging Face's keys and the tensors under Hugging Face's names, each read only
when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvevict.errors import InputError
from kvevict.models.chat import ChatTemplate, read_chat_template
from kvevict.models.tokenizer import Tokenizer, read_tokenizer

Tensors = dict[str, Callable[[], np.ndarray]]

PICKLED = (".bin", ".pdparams", ".pt", ".pth", ".ckpt", ".pkl")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass
class Checkpoint:
    """What a model is made of, independent of the framework that will run it.

    `config` has Hugging Face's keys; `tensors` maps Hugging Face's names to functions that return
    the array, linear weights as `[out, in]`; `eos_ids` are the ids that end a generation; `chat` is
    None for a model without a chat template.
    """

    source: str
    config: dict
    tensors: Tensors
    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]
    chat: ChatTemplate | None = None


def read_directory(path: Path) -> Checkpoint:
    """Read a directory in Hugging Face or PaddleNLP layout.

    Raises `InputError` for a missing or malformed file, another architecture, or pickled weights.
    """
    config_file = path / "config.json"
    if not config_file.is_file():
        raise InputError(f"{path} has no config.json, so it is not a model directory")
    config = normalise_config(read_json(config_file), str(config_file))
    tensors = {}
    for file in _weight_files(path):
        tensors.update(read_safetensors(file))
    if any(name.startswith("llama.") for name in tensors):
        tensors = _from_paddlenlp(tensors)
    generation_file = path / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    eos_ids = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    tokenizer_file = path / "tokenizer_config.json"
    chat = read_chat_template(path, read_json(tokenizer_file) if tokenizer_file.is_file() else {})
    return Checkpoint(str(path), config, tensors, read_tokenizer(path), eos_ids, chat)


def normalise_config(config: dict, source: str) -> dict:
    """Check that `config` is a Llama that PaddleNLP can build; return it in one set of keys.

    `rope_parameters`, as transformers 5 writes it, becomes `rope_theta` and `rope_scaling`, and so
    do PaddleNLP's `rope_scaling_type` and `rope_scaling_factor`.
    """
    architectures = config.get("architectures") or [config.get("model_type")]
    if not {"LlamaForCausalLM", "llama", "Qwen2ForCausalLM", "qwen2"} & set(architectures):
        raise InputError(
            f"{source}: only Llama and Qwen2 models can be loaded, this one is {architectures[0]}"
        )
    config = dict(config)
    rope = dict(config.pop("rope_parameters", None) or {})
    if rope:
        config["rope_theta"] = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
        config["rope_scaling"] = rope
    kind = config.pop("rope_scaling_type", None)
    factor = config.pop("rope_scaling_factor", 1.0)
    if kind is not None:
        config["rope_scaling"] = {"rope_type": kind, "factor": factor}
    for key in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "max_position_embeddings",
    ):
        _positive(config, key, source)
    heads = _positive(config, "num_attention_heads", source)
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = heads
    kv_heads = _positive(config, "num_key_value_heads", source)
    if config["hidden_size"] % heads or heads % kv_heads:
        raise InputError(
            f"{source}: hidden_size {config['hidden_size']}, num_attention_heads {heads} and "
            f"num_key_value_heads {kv_heads} do not divide one another"
        )
    head_dim = config["hidden_size"] // heads
    if config.get("head_dim") not in (None, head_dim):
        raise InputError(
            f"{source}: head_dim {config['head_dim']} differs from hidden_size / "
            f"num_attention_heads = {head_dim}, which PaddleNLP's Llama cannot run"
        )
    return config


def read_safetensors(path: Path) -> Tensors:
    """What a safetensors file holds; each tensor is read, as floating point, when called for.

    Written here because NumPy has no bfloat16: such tensors come back as float32, exactly.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        header.pop("__metadata__", None)
        return {name: _reader(path, 8 + length, size, entry) for name, entry in header.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def llama_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What Paddle's and Hugging Face's `LlamaConfig` call by the same names."""
    config, eos = checkpoint.config, list(checkpoint.eos_ids)
    return {
        **{name: config[name] for name in SIZES},
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.get("pad_token_id"),
    }


def read_weights(
    checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that a model is made of, one after the other, so that only one is held.

    `shapes` maps Hugging Face's names to what the model expects, linear weights `[out, in]`.
    Raises `InputError` when a tensor is missing, unknown or of another shape.
    """
    tied = {"lm_head.weight"} if checkpoint.config.get("tie_word_embeddings") else set()
    known = tied.union(shapes)
    for name in shapes:
        if name not in checkpoint.tensors:
            raise InputError(f"{checkpoint.source} lacks the tensor {name}")
    for name in checkpoint.tensors:
        if name not in known and not name.endswith("rotary_emb.inv_freq"):
            raise InputError(f"{checkpoint.source} has a tensor that Llama does not: {name}")
    for name, shape in shapes.items():
        # Without a name here, so that the array goes as soon as who asked for it lets go of it.
        yield name, _read_checked(checkpoint, name, list(shape))


def _read_checked(checkpoint: Checkpoint, name: str, shape: list[int]) -> np.ndarray:
    array = checkpoint.tensors[name]()
    if list(array.shape) != shape:
        raise InputError(
            f"{checkpoint.source}: the tensor {name} has {array.size} values of shape "
            f"{list(array.shape)} where the configuration asks for {shape}"
        )
    return array


def read_json(path: Path) -> dict:
    """A JSON object from `path`; `InputError` names the file otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value


def pickle_error(path: Path) -> InputError:
    """The error for weights that only unpickling could read, which could run any code."""
    return InputError(
        f"{path} holds pickled weights, which are never loaded because a pickle can run any code: "
        "use the model's safetensors or GGUF file"
    )


def _reader(path: Path, body: int, size: int, entry: dict) -> Callable[[], np.ndarray]:
    """What reads one tensor; ``body`` is where the header ends, ``size`` where the file does."""
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']} are not supported")
    dtype, shape, (start, end) = (
        np.dtype(_DTYPES[entry["dtype"]]),
        entry["shape"],
        entry["data_offsets"],
    )
    count = int(np.prod(shape))
    if not 0 <= start <= end <= size - body or end - start != dtype.itemsize * count:
        raise ValueError("the header promises more than the file holds")

    def read() -> np.ndarray:
        # Read, not mapped: pages of a mapped file would stay in memory beside the model.
        array = np.fromfile(path, dtype, count, offset=body + start)
        if entry["dtype"] == "BF16":
            array = array.astype(np.uint32)
            array <<= 16
            array = array.view(np.float32)
        return array.reshape(shape)

    return read


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map")
        files = [path / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{path} lacks {missing[0]}, which {index.name} names")
        return files
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    for file in sorted(path.iterdir()):
        if file.suffix in PICKLED:
            raise pickle_error(file)
    raise InputError(f"{path} has no weights: neither model.safetensors nor its index is there")


def _from_paddlenlp(tensors: Tensors) -> Tensors:
    # PaddleNLP says "llama." for "model." and stores linear weights as [in, out].
    def renamed(name: str) -> str:
        return "model." + name[len("llama.") :] if name.startswith("llama.") else name

    def transposed(read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        return lambda: read().T

    return {
        renamed(name): transposed(read) if is_linear(name) else read
        for name, read in tensors.items()
    }


def is_linear(name: str) -> bool:
    """Whether `name` is the weight of a linear layer, which Paddle stores transposed."""
    return name.endswith("_proj.weight") or name == "lm_head.weight"


def _positive(config: dict, key: str, source: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{source}: {key} must be a positive integer, not {value!r}")
    return value
