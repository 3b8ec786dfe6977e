"""A random Llama of transformers, and what the tests of its backend ask it."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch backend is optional")
if not torch.cuda.is_available():  # transformers imports Triton, which reads this once
    os.environ.setdefault("TRITON_INTERPRET", "1")
transformers = pytest.importorskip("transformers", reason="the PyTorch backend is optional")

from kvevict import NACL  # noqa: E402

GREEDY = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def tiny(**settings) -> transformers.LlamaForCausalLM:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        initializer_range=0.15,
        **{"max_position_embeddings": 512, **settings},
    )
    return transformers.LlamaForCausalLM(config).eval()


def prompt(seed: int = 0, count: int = 100) -> torch.Tensor:
    return torch.randint(2, 256, (1, count), generator=torch.Generator().manual_seed(seed))


def answer(model, ids: torch.Tensor, **settings) -> list[int]:
    """The new tokens of transformers' `generate`."""
    settings = {**GREEDY, "attention_mask": torch.ones_like(ids), **settings}
    return model.generate(ids, **settings)[0, ids.shape[1] :].tolist()


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """To float32's rounding: logits are sums of some hundred products, layer upon layer."""
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def nacl(**settings):
    return NACL(keep_ratio=0.2, min_eviction_seqlen=0, **settings)
