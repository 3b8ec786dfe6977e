"""Adding a LoRA adapter (Hu et al., 2021) in PEFT's files to a checkpoint's weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvevict.errors import InputError
from kvevict.models.checkpoint import Checkpoint, read_json, read_safetensors

_PREFIX = "base_model.model."
_OVERRIDES = ("rope_theta", "max_position_embeddings")
_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")


def merge(checkpoint: Checkpoint, adapter: Path) -> Checkpoint:
    """`checkpoint` with W + (alpha / r) · B A for every adapted weight W, in float32.

    `adapter` holds `adapter_config.json` and `adapter_model.safetensors`. The configuration may
    also carry `rope_theta` and `max_position_embeddings`, which replace the base model's.
    """
    settings = read_json(adapter / "adapter_config.json")
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise InputError(f"{adapter / 'adapter_config.json'}: {key} is not supported")
    try:
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} lacks r or lora_alpha") from error
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    factors = read_safetensors(adapter / "adapter_model.safetensors")
    tensors = dict(checkpoint.tensors)
    for name in [name for name in factors if name.endswith(".lora_A.weight")]:
        module = name[: -len(".lora_A.weight")]
        target = module[len(_PREFIX) :] + ".weight" if module.startswith(_PREFIX) else None
        down, up = factors.pop(name), factors.pop(f"{module}.lora_B.weight", None)
        if up is None or target not in tensors:
            raise InputError(f"{adapter}: {name} does not fit {checkpoint.source}")
        tensors[target] = _merged(tensors[target], down, up, scale)
    if factors:
        raise InputError(f"{adapter}: {next(iter(factors))} is not part of a LoRA adapter")
    overrides = {key: settings[key] for key in _OVERRIDES if settings.get(key) is not None}
    return Checkpoint(
        source=str(adapter),
        config={**checkpoint.config, **overrides},
        tensors=tensors,
        tokenizer=checkpoint.tokenizer,
        eos_ids=checkpoint.eos_ids,
    )


def _merged(
    base: Callable[[], np.ndarray],
    down: Callable[[], np.ndarray],
    up: Callable[[], np.ndarray],
    scale: float,
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        delta = up().astype(np.float32) @ down().astype(np.float32)
        return base().astype(np.float32) + np.float32(scale) * delta

    return read
