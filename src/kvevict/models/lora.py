"""Adding a LoRA adapter (Hu et al., 2021) in PEFT's files to a checkpoint's weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvevict.errors import InputError
from kvevict.models.checkpoint import Checkpoint, read_json
from kvevict.models.config import normalise_config
from kvevict.models.weights import LazyTensor, read_safetensors

_PREFIX = "base_model.model."
_OVERRIDES = ("rope_theta", "rope_scaling", "max_position_embeddings")
_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")


def merge(checkpoint: Checkpoint, adapter: Path) -> Checkpoint:
    """``checkpoint`` with W + (alpha / r) · B A for every adapted weight W, in float32.

    Args:
        adapter: a directory with ``adapter_config.json`` and ``adapter_model.safetensors``. Beside
            PEFT's own keys, ``base_config_overrides`` may replace the base model's ``rope_theta``,
            ``rope_scaling`` and ``max_position_embeddings``, for an adapter that was trained at
            other positions.

    Raises:
        InputError: the adapter is of another kind or does not fit.
    """
    config_file = adapter / "adapter_config.json"
    settings = read_json(config_file)
    overrides = settings.get("base_config_overrides") or {}
    refused = [key for key in _UNSUPPORTED if settings.get(key)]
    refused += [key for key in overrides if key not in _OVERRIDES]
    if refused:
        raise InputError(f"{config_file}: {refused[0]} is not supported")
    try:
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{config_file} lacks r or lora_alpha, or they are no numbers") from error
    factors = read_safetensors(adapter / "adapter_model.safetensors")
    tensors = dict(checkpoint.tensors)
    for name in [name for name in factors if name.endswith(".lora_A.weight")]:
        module = name[: -len(".lora_A.weight")]
        target = module[len(_PREFIX) :] + ".weight" if module.startswith(_PREFIX) else None
        down, up = factors.pop(name), factors.pop(f"{module}.lora_B.weight", None)
        if up is None or target not in tensors:
            raise InputError(f"{adapter}: {name} does not fit {checkpoint.source}")
        tensors[target] = _merged(tensors[target], down, up, scale, f"{adapter}: {module}")
    if factors:
        raise InputError(f"{adapter}: {next(iter(factors))} is not part of a LoRA adapter")
    config = normalise_config({**checkpoint.config, **overrides}, str(config_file))
    return replace(checkpoint, source=str(adapter), config=config, tensors=tensors)


def _merged(
    base: LazyTensor, down: LazyTensor, up: LazyTensor, scale: float, what: str
) -> LazyTensor:
    if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != base.shape:
        raise InputError(
            f"{what}: B {list(up.shape)} times A {list(down.shape)} is not {list(base.shape)}"
        )

    def read() -> np.ndarray:
        a, b, weight = (tensor().astype(np.float32) for tensor in (down, up, base))
        return weight + np.float32(scale) * (b @ a)

    return LazyTensor(base.shape, read)
