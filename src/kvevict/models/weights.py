"""Tensors of a file, whose shapes are known before any is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvevict.errors import InputError

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# How quantised weights are known where no config.json says so: by ends of names, or by types.
_QUANTISED_NAMES = {
    ".g_idx": "GPTQ",
    ".qweight": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
}
_BYTES = "bitsandbytes or another format of 8-bit integers"
_QUANTISED_TYPES = {"F8_E4M3": "FP8", "F8_E5M2": "FP8", "U8": _BYTES, "I8": _BYTES}
_WRITTEN = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}  # as config.json has them


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read, as floating point, when it is called for.

    Attributes:
        shape: what :attr:`read` will return.
        read: reads it.
        bfloat16: reads it as the file has it, if in bfloat16: bits in uint16, half the bytes.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    bfloat16: Callable[[], np.ndarray] | None = None

    def __call__(self) -> np.ndarray:
        """The tensor, in memory of its own."""
        return self.read()


Tensors = dict[str, LazyTensor]


def read_safetensors(path: Path) -> Tensors:
    """What a safetensors file holds.

    Written here because NumPy has no bfloat16: such tensors come back as float32, exactly.

    Raises:
        InputError: the file cannot be read, is not whole, or holds quantised weights.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        header.pop("__metadata__", None)
        _refuse_quantised({name: entry["dtype"] for name, entry in header.items()})
        return {name: _lazy(path, 8 + length, size, entry) for name, entry in header.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def quantised(method: str | None) -> InputError:
    """The error for weights of fewer bits than a model computes in, made by ``method``."""
    return InputError(
        f"the weights are quantised with {_WRITTEN.get(method, method)}, which is not supported: "
        "take the original model, or a GGUF file of it"
    )


def _refuse_quantised(types: dict[str, str]) -> None:
    odd = {name: kind for name, kind in types.items() if kind not in _DTYPES}
    if not odd:
        return
    for end, method in _QUANTISED_NAMES.items():
        if any(name.endswith(end) for name in types):
            raise quantised(method)
    for name, kind in odd.items():
        if kind in _QUANTISED_TYPES:
            raise quantised(_QUANTISED_TYPES[kind])
        raise InputError(f"{name} has the type {kind}, and only floating point can be read")


def _lazy(path: Path, body: int, size: int, entry: dict) -> LazyTensor:
    """What reads one tensor; ``body`` is where the header ends, ``size`` where the file does."""
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    start, end = entry["data_offsets"]
    count = int(np.prod(shape))
    if not 0 <= start <= end <= size - body or end - start != dtype.itemsize * count:
        raise ValueError("the header promises more than the file holds")

    def read() -> np.ndarray:
        # Read, not mapped: pages of a mapped file would stay in memory beside the model.
        return np.fromfile(path, dtype, count, offset=body + start).reshape(shape)

    def widened() -> np.ndarray:
        array = read().astype(np.uint32)
        array <<= 16
        return array.view(np.float32)

    return LazyTensor(shape, widened, read) if entry["dtype"] == "BF16" else LazyTensor(shape, read)
