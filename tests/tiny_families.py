"""A random model of a few kilobytes of each family, as a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from kvevict.models.config import normalise_config
from kvevict.models.families import by_config

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 20000.0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
# Beside the sizes, each with something that is its own. Models with a head_dim of 16 also run under
# PaddleNLP.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_scaling": LLAMA3},
    "llama, own head_dim": {"model_type": "llama", "head_dim": 32},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied, YaRN": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_scaling": YARN,
        "use_sliding_window": False,
        "sliding_window": 64,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "mistral": {"model_type": "mistral", "sliding_window": None, "pad_token_id": 9},
    "mistral, tied": {
        "model_type": "mistral",
        "tie_word_embeddings": True,
        "sliding_window": 400,
        "pad_token_id": 9,
    },
    "smollm3": {
        "model_type": "smollm3",
        "num_hidden_layers": 5,
        "no_rope_layer_interval": 2,
        "pad_token_id": 9,  # by default one beyond so small a vocabulary
    },
}
PADDLE = [
    name
    for name, config in CONFIGS.items()
    if config["model_type"] in ("llama", "qwen2", "mistral") and "head_dim" not in config
]
IDS = np.random.default_rng(8).integers(10, 300, 96).tolist() + [9] * 4  # padding among them


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights by Hugging Face's names; norms are near one."""
    config = normalise_config(config, "config")
    draw, weights = np.random.default_rng(seed), {}
    for name, shape in by_config(config, "config").shapes(config).items():
        values = draw.normal(0.0, 0.2, shape)
        weights[name] = (1.0 + values if "norm" in name else values).astype(np.float32)
    return weights


def write_tokenizer(path: Path) -> None:
    """A tokenizer.json, since a directory must have one: every word is a number."""
    words = {str(i): i for i in range(SIZES["vocab_size"])}
    Tokenizer(models.WordLevel(words, "0")).save(str(path / "tokenizer.json"))


def write_model(path: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    """A directory of these weights, and its path."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(path)
    return path


def write_family(path: Path, name: str, **changes: Any) -> Path:
    """The model of ``CONFIGS[name]``, random, with ``changes`` to its config.json."""
    config = {**SIZES, **CONFIGS[name], **changes}
    return write_model(path, config, random_weights(config))


def assert_close(actual, expected: np.ndarray) -> None:
    """To 1e-4 of the largest logit."""
    assert np.abs(np.asarray(actual) - expected).max() < 1e-4 * np.abs(expected).max()
