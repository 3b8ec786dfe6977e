"""Rotary frequencies from a configuration, in float64.

PaddleNLP and transformers compute angles in float32, whose error grows with the position.
PaddleNLP also ignores a Hugging Face `rope_scaling` other than "llama3", and holds a table of all
positions for each layer (4 GiB for Llama 3.1 8B). One exact table, shared by all layers, is put in
their place, so that both frameworks rotate alike.
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


def rotary_tables(config: dict) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of all positions, from float64: float32 `[positions, head_dim]`.

    Both halves of a row are alike, since dimension i turns with dimension i + head_dim / 2.
    """
    positions = np.arange(config["max_position_embeddings"], dtype=np.float64)
    angles = np.outer(positions, inverse_frequencies(config))
    cos, sin = (table(angles).astype(np.float32) for table in (np.cos, np.sin))
    return np.concatenate([cos, cos], axis=-1), np.concatenate([sin, sin], axis=-1)


def _llama3(frequencies: np.ndarray, scaling: dict) -> np.ndarray:
    """Llama 3.1: long wavelengths slowed by `factor`, short ones kept, a ramp between."""
    original = float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = original * frequencies / (2 * math.pi)  # rotations within the original context
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / float(scaling["factor"]))
