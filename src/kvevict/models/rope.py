"""Rotary positions from a configuration, in float64.

PaddleNLP and transformers compute angles in float32, whose error grows with the position, and
PaddleNLP knows fewer scalings. Both get the angles of this module, so that they turn alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvevict.errors import InputError

# The keys of `rope_scaling` that each kind reads.
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
        *("attention_factor", "mscale", "mscale_all_dim"),
    ),
    # One divisor for each frequency, as GGUF stores them, beside a linear scaling.
    "factors": ("factor", "factors"),
}
_ALWAYS = ("type", "rope_type", "rope_theta", "finetuned", "original_max_position_embeddings")


def check_rope(config: Mapping[str, Any]) -> None:
    """Refuse a ``rope_scaling`` that :func:`inverse_frequencies` does not wholly honour.

    Raises:
        InputError: it is of another kind, lacks a key or has one that its kind does not read.
    """
    scaling, kind = _scaling(config), rope_kind(config)
    with np.errstate(all="ignore"):
        scaled = inverse_frequencies(config) * attention_scale(config)
    if not (np.isfinite(scaled) & (scaled > 0)).all():
        raise InputError(f"rope_scaling {dict(scaling)} does not give finite positive angles")
    for key, value in scaling.items():
        if key not in (*_KEYS[kind], *_ALWAYS) and (key, value) != ("partial_rotary_factor", 1):
            raise InputError(f"{key}={value!r} in rope_scaling of type {kind!r} is not supported")


def inverse_frequencies(config: Mapping[str, Any]) -> np.ndarray:
    """Angle per position of each pair of a head's dimensions: float64 ``[head_dim / 2]``.

    Args:
        config: with Hugging Face's keys. ``rope_scaling`` may be absent, "default", "linear",
            "llama3" (Llama 3.1's by-parts scaling), "yarn" (arXiv 2309.00071, section 3.2) or
            "factors" (one divisor per frequency).

    Raises:
        InputError: ``rope_scaling`` is of another kind or not complete.
    """
    scaling, kind, head_dim = _scaling(config), rope_kind(config), _head_dim(config)
    if kind not in _KEYS:
        raise InputError(f"rope_scaling of type {kind!r} is not supported")
    try:
        theta = float(config.get("rope_theta") or 10000.0)
        frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if kind == "linear":
            return frequencies / float(scaling["factor"])
        if kind == "llama3":
            return _llama3(frequencies, scaling)
        if kind == "yarn":
            return _yarn(frequencies, scaling, theta, head_dim)
        if kind == "factors":
            divisors = np.asarray(scaling["factors"], dtype=np.float64).reshape(head_dim // 2)
            return frequencies / divisors / float(scaling.get("factor") or 1.0)
        return frequencies
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"rope_scaling {dict(scaling)} is not complete: {error!r}") from error


def attention_scale(config: Mapping[str, Any]) -> float:
    """What cosines and sines are multiplied by: 1 but under YaRN, there 0.1 ln(factor) + 1.

    Scores are thereby multiplied by its square (arXiv 2309.00071, section 3.3).
    ``attention_factor`` replaces it, and so does the quotient of two such terms where ``mscale``
    and ``mscale_all_dim`` weigh them.
    """
    scaling = _scaling(config)
    if rope_kind(config) != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def term(weight: float) -> float:
        return 0.1 * weight * math.log(max(float(scaling["factor"]), 1.0)) + 1.0

    weight, below = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return term(weight) / term(below) if weight and below else term(1.0)


def rotary_tables(config: Mapping[str, Any], positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the first ``positions``, scaled: float32 ``[positions, head_dim]``.

    Both halves of a row are alike, since dimension i turns with dimension i + head_dim / 2.
    """
    angles = np.outer(np.arange(positions, dtype=np.float64), inverse_frequencies(config))
    scale = attention_scale(config)
    cos, sin = ((table(angles) * scale).astype(np.float32) for table in (np.cos, np.sin))
    return np.concatenate([cos, cos], axis=-1), np.concatenate([sin, sin], axis=-1)


def rope_kind(config: Mapping[str, Any]) -> str:
    """What kind of scaling a configuration asks for; "default" for none."""
    scaling = _scaling(config)
    return scaling.get("rope_type") or scaling.get("type") or "default"


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_scaling") or {}


def _head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Llama 3.1: long wavelengths slowed by ``factor``, short ones kept, a ramp between."""
    original = float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = original * frequencies / (2 * math.pi)  # rotations within the original context
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / float(scaling["factor"]))


def _yarn(
    frequencies: np.ndarray, scaling: Mapping[str, Any], theta: float, head_dim: int
) -> np.ndarray:
    """YaRN: as Llama 3.1's, but the ramp is over the pair's index."""
    original = float(scaling["original_max_position_embeddings"])

    def index(turns: float) -> float:
        """Of the pair that turns so often within the original context."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = index(scaling.get("beta_fast") or 32)
    last = index(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    pairs = np.arange(head_dim // 2)
    slowed = np.clip((pairs - first) / ((last - first) or 0.001), 0.0, 1.0)
    return frequencies * (1.0 - slowed + slowed / float(scaling["factor"]))
