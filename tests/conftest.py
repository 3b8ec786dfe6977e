"""Shared fixtures: Paddle configured before any test imports it, a real model and a tiny one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from kvevict import backends, models

# The tests of the kernels and of the PyTorch backend also run where there is no Paddle.
if importlib.util.find_spec("paddle"):
    backends.backend("paddle")


@pytest.fixture(scope="session")
def builtin_dir() -> Path:
    """The built-in SmolLM2-135M-Instruct in Hugging Face layout; fetched if it is not there."""
    return models.builtin_dir("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def builtin_model(builtin_dir: Path) -> backends.LoadedModel:
    """The same, loaded. Shared: a test that changes it must change it back."""
    return backends.load("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny_model():
    """A random 3-layer Llama, 8 query heads on 2 kv heads, head_dim 16, vocabulary of 256.

    Its weights are large enough for attention that is far from uniform. Shared like
    `builtin_model`.
    """
    import paddle
    from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM

    paddle.seed(1234)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.15,
        eos_token_id=0,
        bos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model
