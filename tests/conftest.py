"""Shared fixtures: Paddle configured before any test imports it, a real model and a tiny one."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
from functools import lru_cache
from pathlib import Path

import pytest

from kvevict import backends, models
from kvevict.models.builtin import cached_dirs

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children too.
with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"

# The tests of the kernels and of the PyTorch backend also run where there is no Paddle.
if importlib.util.find_spec("paddle"):
    backends.backend("paddle")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A module named after a framework is for the environment that has it."""
    named = [name for name in ("paddle", "torch") if name in collection_path.stem]
    return True if any(importlib.util.find_spec(name) is None for name in named) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose marker says that they need what is not here, and say so in the report."""
    for item in items:
        for marker in item.iter_markers():
            reason = missing(marker)
            if reason:
                item.user_properties.append(("needs", marker.name))
                item.add_marker(pytest.mark.skip(reason=reason))


def missing(marker: pytest.Mark) -> str | None:
    if marker.name == "gpu" and not gpu_is_there():
        return "needs a GPU"
    if marker.name == "published" and not (SHARED / marker.args[0]).exists():
        return f"needs ../shared/{marker.args[0]}"
    if marker.name == "builtin" and not cached_dirs(marker.args[0]):
        return f"needs python -m kvevict.models fetch {marker.args[0]}"
    return None


@lru_cache
def gpu_is_there() -> bool:
    if importlib.util.find_spec("torch"):
        import torch

        return torch.cuda.is_available()
    import paddle

    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


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


@pytest.fixture(scope="session", params=["paddle", "torch"])
def tiny_decoder(request):
    """A random Llama as `tiny_model` is, taken apart, in each framework that is installed."""
    pytest.importorskip(request.param)
    if request.param == "paddle":
        from kvevict.backends.paddle import decoder

        return decoder(request.getfixturevalue("tiny_model"))
    from kvevict.backends.torch import decoder
    from tests.backends.torch_model import tiny

    return decoder(tiny())
