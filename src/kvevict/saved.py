"""Caches in files: one safetensors file holds what a session has kept of its prompt.

Its tensors are ``layers.<n>.keys`` and ``layers.<n>.values`` ``[sum(lengths), head_dim]`` and,
where they were recorded, ``layers.<n>.positions``; ``lengths`` ``[layers, kv_heads]``, the prompt's
``tokens``, and the next ``logits``. Of a quantised cache, keys and values are codes, and the other
tensors of :class:`~kvevict.quantised.Quantised` stand beside them. The header's metadata say what
made it. Keys have RoPE applied, so the file is of use to the model that made it and to no other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cache import KVCache, LayerCache
from .engine.session import Decoder, Session
from .errors import InputError
from .files import expand, replacing
from .quantised import Quantised
from .tensors import Tensor, namespace

FORMAT, VERSION = "kvevict-cache", 2
UNQUANTISED = 1  # the version of files that need no later one
PARTS = ("keys", "values", "positions")  # of a layer
ALIGNMENT = 64  # bytes: where tensors lie as they do in memory, they are computed with alike
_WORDS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int8": "I8",
    "uint8": "U8",
}
# NumPy has no bfloat16: its bits travel as whole numbers.
_TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.int16,
    "I64": np.int64,
    "I8": np.int8,
    "U8": np.uint8,
}


@dataclass(frozen=True)
class SavedPrompt:
    """A prompt that was read, and what was kept of it.

    Attributes:
        session: as :func:`~kvevict.prefill` returned it.
        ids: the prompt's tokens.
        method: what was kept: :func:`~kvevict.methods.describe` of the policy.
        model: what the model is: :func:`~kvevict.models.identity.model_identity`, or any names and
            digests that tell it from others.
    """

    session: Session
    ids: list[int]
    method: Mapping[str, Any]
    model: Mapping[str, str]


def save(path: str | Path, prompt: SavedPrompt) -> None:
    """Write a prompt's cache into a file, which stays as it was until the new one is whole.

    Raises:
        InputError: the session has gone on since its prompt, or evicts while it decodes, which
            takes statistics that are not saved; or the file cannot be written.
    """
    session, cache = prompt.session, prompt.session.cache
    if session.evicts:
        raise InputError("a cache that is evicted from while decoding cannot be saved")
    if cache.seen != len(prompt.ids) or any(layer.tail for layer in cache.layers):
        raise InputError("a cache is saved before anything follows its prompt; fork the session")
    tensors: dict[str, Tensor | np.ndarray] = {}
    for number, layer in enumerate(cache.layers):
        parts = {name: getattr(layer, name) for name in PARTS}
        if layer.quantised:
            parts.update(layer.quantised.tensors)
        for name, tensor in parts.items():
            if tensor is not None:
                tensors[f"layers.{number}.{name}"] = tensor
    tensors["lengths"] = np.array([layer.lengths for layer in cache.layers], np.int64)
    tensors["tokens"] = np.array(prompt.ids, np.int64)
    tensors["logits"] = session.logits
    kv_dtype = cache.layers[0].kv_dtype
    metadata = {
        "format": FORMAT,
        "version": str(VERSION if kv_dtype else UNQUANTISED),
        "method": json.dumps(dict(prompt.method)),
        "model": json.dumps(dict(prompt.model)),
    }
    if kv_dtype:
        metadata["kv_dtype"] = kv_dtype
    _write(expand(path), tensors, metadata)


def load(path: str | Path, decoder: Decoder, model: Mapping[str, str]) -> SavedPrompt:
    """A prompt's cache from a file, in the framework, the type and on the device of a model.

    On a CPU, where the type is the file's, the file is mapped: what is not attended to is not
    read. The file may be replaced meanwhile, but must not be written to.

    Args:
        decoder: of the model that is to go on.
        model: as the file was saved with.

    Raises:
        InputError: the file is of another model or a later version, is not whole, or is none of
            :func:`save`.
    """
    path = expand(path)
    try:
        metadata, arrays = _read(path)
        _check(path, metadata, model)
        return SavedPrompt(
            session=_session(arrays, metadata.get("kv_dtype"), decoder),
            ids=arrays["tokens"][1].tolist(),
            method=json.loads(metadata["method"]),
            model=dict(model),
        )
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not a saved cache, or not the whole of one") from None


def _check(path: Path, metadata: Mapping[str, str], model: Mapping[str, str]) -> None:
    if metadata["format"] != FORMAT:
        raise ValueError("another format")
    version = int(metadata["version"])
    if version > VERSION:
        raise InputError(
            f"{path} was saved by a newer kvevict, in version {version} of the format; this one "
            f"reads up to version {VERSION}"
        )
    if json.loads(metadata["model"]) != dict(model):
        raise InputError(f"{path} was saved with another model, or with other weights of it")


Stored = tuple[str, np.ndarray]  # safetensors' word for its type, and the values or their bits


def _session(arrays: Mapping[str, Stored], kv_dtype: str | None, decoder: Decoder) -> Session:
    like = decoder.embed([0])
    layers = []
    for number, lengths in enumerate(arrays["lengths"][1].tolist()):
        first = f"layers.{number}."
        parts = {name[len(first) :]: x for name, x in arrays.items() if name.startswith(first)}
        positions = parts.pop("positions", None)
        make = _quantised_layer if kv_dtype else _layer
        layer = make(parts, lengths, kv_dtype, like)
        if len(lengths) != decoder.kv_heads:
            raise ValueError("the lengths are not those of the keys")
        if positions is not None:
            layer.positions = _tensor(positions, like, convert=False)
        layers.append(layer)
    if len(layers) != decoder.layers:
        raise ValueError("the layers are not the model's")
    session = Session(decoder, KVCache(layers, len(arrays["tokens"][1])))
    session.logits = _tensor(arrays["logits"], like, convert=False)
    return session


def _layer(parts: Mapping[str, Stored], lengths: list[int], _: None, like: Tensor) -> LayerCache:
    layer = LayerCache(_tensor(parts["keys"], like), _tensor(parts["values"], like), lengths)
    shapes = (list(layer.keys.shape), list(layer.values.shape))
    if shapes != ([sum(lengths), shapes[0][1]],) * 2:
        raise ValueError("the lengths are not those of the keys")
    return layer


def _quantised_layer(
    parts: Mapping[str, Stored], lengths: list[int], kv_dtype: str, like: Tensor
) -> LayerCache:
    tensors = {name: _tensor(stored, like, convert=False) for name, stored in parts.items()}
    quantised = Quantised(kv_dtype, **tensors)
    quantised.check(lengths)
    empty = like.new_empty((0, quantised.key_scales.shape[-1]))
    return LayerCache(empty, empty, lengths, quantised=quantised)


def _tensor(stored: Stored, like: Tensor, convert: bool = True) -> Tensor:
    """Stored values where ``like`` is, mapped if that is the CPU; to ``convert``, in its type."""
    (word, array), ns = stored, namespace(like)
    from_dlpack = ns.utils.dlpack.from_dlpack
    tensor = from_dlpack(array).to(like.device)
    if word == "BF16":
        tensor = tensor.view(ns.bfloat16)
    return tensor.to(like.dtype) if convert else tensor


def _word(x: Tensor | np.ndarray) -> str:
    """safetensors' word for a tensor's type."""
    return _WORDS[str(x.dtype).rpartition(".")[2]]


def _array(x: Tensor | np.ndarray) -> np.ndarray:
    """A tensor's values or, of bfloat16, their bits."""
    if isinstance(x, np.ndarray):
        return x
    x = x.detach().cpu().contiguous()
    return (x.view(namespace(x).int16) if _word(x) == "BF16" else x).numpy()


def _write(
    path: Path, tensors: Mapping[str, Tensor | np.ndarray], metadata: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, x in tensors.items():
        word = _word(x)
        start, end = end, end + math.prod(x.shape) * np.dtype(_TYPES[word]).itemsize
        header[name] = {"dtype": word, "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            file.write(np.ascontiguousarray(_array(x)).data)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Stored]]:
    """The metadata and the tensors of a file, mapped: writing to one leaves the file as it is."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > size:
            raise ValueError("no header")
        header = json.loads(file.read(length))
    # Copy-on-write: frameworks take no memory that is read-only.
    body = np.asarray(np.memmap(path, np.uint8, mode="c"))[8 + length :]
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(body):
            raise ValueError("the header promises more than the file holds")
        values = body[start:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
        arrays[name] = (entry["dtype"], values)
    return metadata, arrays
