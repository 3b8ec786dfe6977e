"""The families that PaddleNLP has, against transformers' logits of the same files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from kvevict import InputError, backends, build, decode, evict, prefill
from kvevict.models import read_checkpoint
from tests.interpreters import interpreter
from tests.tiny_families import (
    CONFIGS,
    IDS,
    PADDLE,
    SIZES,
    assert_close,
    write_family,
    write_tokenizer,
)

paddle = pytest.importorskip("paddle", reason="Paddle has an environment of its own")
METHODS = ("nacl", "laprox", "snapkv", "expected_attention", "keydiff", "defensivekv")
THEIRS = """
import sys, numpy, torch, transformers
ids = torch.tensor([[int(i) for i in sys.argv[1].split()]])
for path in sys.argv[2:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        numpy.save(path + "/logits.npy", model(ids).logits[0].numpy())
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """A directory for each configuration."""
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(root / str(i), name) for i, name in enumerate(CONFIGS)}


@pytest.fixture(scope="module")
def expected(paths) -> dict[str, np.ndarray]:
    """Logits ``[tokens, vocabulary]`` of those that PaddleNLP runs, by transformers on PyTorch."""
    ids, wanted = " ".join(map(str, IDS)), [str(paths[name]) for name in PADDLE]
    done = subprocess.run(
        [interpreter("pytorch"), "-c", THEIRS, ids, *wanted], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {name: np.load(paths[name] / "logits.npy") for name in PADDLE}


@pytest.mark.parametrize("name", PADDLE)
def test_logits_are_those_of_transformers(paths, expected, name) -> None:
    loaded = backends.load(paths[name], device="cpu")
    with paddle.no_grad():
        own = loaded.model(paddle.to_tensor([IDS]), return_dict=True).logits[0].numpy()
    assert_close(own, expected[name])
    (session,) = prefill(loaded.decoder(), IDS[:90], [build("full")])
    assert_close(session.logits, expected[name][89])
    for position in range(90, len(IDS)):
        assert_close(session.extend([IDS[position]]), expected[name][position])


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_methods_keep_what_they_should_and_generate_agrees(paths, name) -> None:
    loaded, tokens = backends.load(paths[name], device="cpu"), paddle.to_tensor([IDS])
    settings = {"max_new_tokens": 8, "decode_strategy": "greedy_search", "eos_token_id": -1}
    for method in METHODS:
        policy = build(method, keep_ratio=0.25, min_eviction_seqlen=0)
        (session,) = prefill(loaded.decoder(), IDS, [policy])
        assert session.cache.entries == 25 * SIZES["num_hidden_layers"] * 2
        with evict(loaded.model, policy) as sessions:
            new, _ = loaded.model.generate(
                tokens, attention_mask=paddle.ones_like(tokens), **settings
            )
        assert new[0].tolist() == decode(session, 8)
        assert bool(session.logits.isfinite().all())
        assert sessions[0].cache.entries == session.cache.entries


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_what_paddlenlp_saves(paths, tmp_path, name) -> None:
    loaded = backends.load(paths[name], device="cpu")
    loaded.model.save_pretrained(str(tmp_path), safe_serialization=True)
    write_tokenizer(tmp_path)
    model_type = CONFIGS[name]["model_type"]
    again = read_checkpoint(str(tmp_path))
    for key, tensor in read_checkpoint(str(paths[name])).tensors.items():
        np.testing.assert_array_equal(again.tensors[key](), tensor())
    assert again.family.model_type == model_type


def test_what_paddlenlp_lacks_is_one_sentence(paths) -> None:
    for name, words in {
        "qwen3": "PaddleNLP has no Qwen3 models; framework pytorch runs it",
        "smollm3": "PaddleNLP has no SmolLM3 models; framework pytorch runs it",
        "llama, own head_dim": r"without a head_dim of their own \(32\); framework pytorch runs it",
    }.items():
        with pytest.raises(InputError, match=words):
            backends.load(paths[name])
