"""Rotary frequencies from a configuration, in float64.

PaddleNLP computes them in float32, whose error grows with the position, ignores a Hugging Face
`rope_scaling` other than "llama3", and holds a table of all positions for each layer (4 GiB for
Llama 3.1 8B). `paddle_llama` puts one exact table, shared by all layers, in their place.
"""

from __future__ import annotations

import math

import numpy as np

from kvevict.errors import InputError


def inverse_frequencies(config: dict) -> np.ndarray:
    """Angle per position of each pair of a head's dimensions: float64 `[head_dim / 2]`.

    `config` has Hugging Face's keys. `rope_scaling` may be absent, "default", "linear", "llama3"
    (Llama 3.1's by-parts scaling) or "factors" (one divisor per frequency, as GGUF stores them).
    """
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    theta = float(config.get("rope_theta") or 10000.0)
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    try:
        if kind == "default":
            return frequencies
        if kind == "linear":
            return frequencies / float(scaling["factor"])
        if kind == "llama3":
            return _llama3(frequencies, scaling)
        if kind == "factors":
            return frequencies / np.asarray(scaling["factors"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"rope_scaling {scaling} is not complete: {error!r}") from error
    raise InputError(f"rope_scaling of type {kind!r} is not supported")


def _llama3(frequencies: np.ndarray, scaling: dict) -> np.ndarray:
    """Llama 3.1: long wavelengths slowed by `factor`, short ones kept, a ramp between."""
    original = float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = original * frequencies / (2 * math.pi)  # rotations within the original context
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / float(scaling["factor"]))
