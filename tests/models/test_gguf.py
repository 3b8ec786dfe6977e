"""GGUF files, written here by the gguf package: their weights, and what their metadata mean."""

from __future__ import annotations

from importlib.util import find_spec

import gguf
import numpy as np
import pytest

from kvevict import backends
from kvevict.errors import InputError
from kvevict.models import read_checkpoint
from kvevict.models.config import max_positions, normalise_config
from kvevict.models.rope import attention_scale, inverse_frequencies
from tests.models.gguf_file import EOT, write_gguf
from tests.reference_llama import (
    DIMS,
    loaded_logits,
    logits,
    plain_frequencies,
    random_weights,
)
from tests.tiny_families import CONFIGS, SIZES
from tests.tiny_families import random_weights as family_weights

IDS = np.random.default_rng(5).integers(0, DIMS["vocab_size"], 40).tolist()
FRAMEWORK = next(name for name, needs in backends.FRAMEWORKS.items() if all(map(find_spec, needs)))


@pytest.fixture
def weights():
    return random_weights(np.random.default_rng(21))


@pytest.mark.parametrize("quant", [None, "F16", "Q8_0", "Q4_1"])
def test_logits_equal_those_of_the_interleaved_rotation(tmp_path, weights, quant):
    kind = quant and gguf.GGMLQuantizationType[quant]
    path = write_gguf(tmp_path / "m.gguf", weights, quant=kind)
    if kind is not None:  # what the file holds is the rounded weights
        weights = {
            n: a if a.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(a, kind), kind)
            for n, a in weights.items()
        }
    loaded = backends.load(str(path), device="cpu", framework=FRAMEWORK)
    assert (loaded.max_positions, loaded.eos_ids) == (512, (EOT,))
    frequencies = plain_frequencies(20000.0)
    expected = logits(weights, IDS, frequencies, interleaved=True)
    # The rotation matters at these sizes, so that a forgotten permutation would show.
    assert np.abs(expected - logits(weights, IDS, frequencies)).max() > 1.0
    np.testing.assert_allclose(loaded_logits(loaded, IDS), expected, atol=2e-4, rtol=1e-4)


def test_frequency_factors_and_tied_embeddings(tmp_path):
    weights = random_weights(np.random.default_rng(4), tied=True)
    factors = np.linspace(1.0, 8.0, 8).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", weights, extra={"rope_freqs.weight": factors})
    expected = logits(weights, IDS, plain_frequencies(20000.0) / factors, interleaved=True)
    loaded = backends.load(str(path), device="cpu", framework=FRAMEWORK)
    np.testing.assert_allclose(loaded_logits(loaded, IDS), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "arch", "metadata"),
    [
        ("llama", "llama", {".rope.dimension_count": 16, ".expert_count": 0}),
        (
            "llama, own head_dim",
            "llama",
            {".attention.key_length": 32, ".attention.value_length": 32},
        ),
        ("qwen2", "qwen2", {}),
        ("qwen2, tied, YaRN", "qwen2", {}),
        ("qwen3", "qwen3", {".attention.key_length": 32, ".attention.value_length": 32}),
        ("mistral", "llama", {}),
        ("smollm3", "smollm3", {}),
    ],
)
def test_every_family_is_that_of_its_directory(tmp_path, name, arch, metadata):
    config = {**SIZES, **CONFIGS[name], "rope_scaling": None}
    weights = family_weights(config)
    permute = arch in ("llama", "smollm3")
    path = write_gguf(
        tmp_path / "m.gguf", weights, arch, {**SIZES, **config}, permute=permute, **metadata
    )
    checkpoint = read_checkpoint(str(path))
    assert checkpoint.tensors.keys() == weights.keys()
    for tensor, array in weights.items():
        np.testing.assert_array_equal(checkpoint.tensors[tensor](), array)
    expected = normalise_config({**config, "pad_token_id": None}, "")
    for key in ("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "vocab_size"):
        assert checkpoint.config[key] == expected[key]
    assert checkpoint.config["rms_norm_eps"] == pytest.approx(1e-5, rel=1e-6)
    assert checkpoint.family.gguf == arch
    if arch == "smollm3":  # llama.cpp has its interval built in
        assert checkpoint.config["no_rope_layers"] == [1, 1, 1, 0, 1]


def frequencies(checkpoint) -> np.ndarray:
    return inverse_frequencies(checkpoint.config) / plain_frequencies(20000.0)


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({}, 1.0),
        ({".rope.scaling.type": "linear", ".rope.scaling.factor": 4.0}, 4.0),
        ({".rope.scaling.factor": 4.0}, 4.0),
        ({".rope.scale_linear": 4.0}, 4.0),
        ({".rope.scale_linear": 4.0, ".rope.scaling.factor": 2.0}, 2.0),
        ({".rope.scaling.type": "linear"}, 1.0),
        ({".rope.scaling.type": "linear", ".rope.scaling.factor": 0.0}, 1.0),
        ({".rope.scaling.type": "none", ".rope.scaling.factor": 4.0}, 1.0),
    ],
)
def test_linear_scaling_in_every_spelling(tmp_path, weights, metadata, factor):
    path = write_gguf(tmp_path / "m.gguf", weights, **metadata)
    np.testing.assert_allclose(frequencies(read_checkpoint(str(path))), 1 / factor)
    divisors = np.linspace(1.0, 8.0, 8).astype(np.float32)
    path = write_gguf(
        tmp_path / "f.gguf", weights, extra={"rope_freqs.weight": divisors}, **metadata
    )
    both = frequencies(read_checkpoint(str(path)))
    np.testing.assert_allclose(both, 1 / divisors / factor, rtol=1e-6)


def test_yarn(tmp_path, weights):
    yarn = {".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0}
    original = {".rope.scaling.original_context_length": 128}
    more = {".rope.scaling.yarn_beta_fast": 16.0, ".rope.scaling.attn_factor": 1.25}
    for metadata, expected, positions, scale in (
        (yarn, {"original_max_position_embeddings": 512}, 2048, 1.0),
        ({**yarn, **original}, {"original_max_position_embeddings": 128}, 512, 1.0),
        (
            {**yarn, **original, **more},
            {"original_max_position_embeddings": 128, "beta_fast": 16.0},
            512,
            1.25,
        ),
    ):
        checkpoint = read_checkpoint(str(write_gguf(tmp_path / "m.gguf", weights, **metadata)))
        theirs = {"rope_type": "yarn", "factor": 4.0, **expected}
        config = {"head_dim": 16, "rope_theta": 20000.0, "rope_scaling": theirs}
        np.testing.assert_allclose(
            inverse_frequencies(checkpoint.config), inverse_frequencies(config)
        )
        assert checkpoint.max_positions == positions
        found = attention_scale(checkpoint.config)
        assert found == pytest.approx(scale * (1 + 0.1 * np.log(4)))


def test_a_window(tmp_path, weights):
    for arch in ("llama", "qwen2"):
        config = {**SIZES, "model_type": arch}
        path = write_gguf(
            tmp_path / "m.gguf", family_weights(config), arch, **{".attention.sliding_window": 100}
        )
        assert max_positions(read_checkpoint(str(path)).config) == 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "mamba"}, "this one is mamba"),
        ({"general.type": "adapter"}, "holds no model: its general.type is adapter"),
        ({"split.count": 3}, "is one of 3 parts: llama-gguf-split --merge"),
        (
            {"extra": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}},
            r"Llama does not: blk\.0\.attn_q\.bias",
        ),
        ({".attention.layer_norm_rms_epsilon": None}, r"lacks llama\..*rms_epsilon"),
        ({".context_length": None}, r"lacks llama\.context_length"),
        ({".expert_count": 8}, r"llama\.expert_count=8 is not supported"),
        ({".attention.value_length": 8}, r"llama\.attention\.value_length=8"),
        ({".rope.dimension_count": 8}, r"llama\.rope\.dimension_count=8"),
        ({".attention.causal": False}, r"llama\.attention\.causal=False"),
        ({".logit_scale": 0.5}, r"llama\.logit_scale=0\.5"),
        ({".attention.head_count": [4, 2]}, "num_attention_heads differs from layer to layer"),
        ({".attention.head_count": 0}, "num_attention_heads must be a positive integer"),
        ({".embedding_length": "64"}, "hidden_size must be a positive integer"),
        ({".rope.scaling.type": "longrope"}, "type 'longrope' is not supported"),
        ({".rope.scaling.attn_factor": 1.5}, r"llama\.rope\.scaling\.attn_factor=1\.5"),
        (
            {".rope.scaling.type": "yarn", ".rope.scaling.yarn_ext_factor": 0.5},
            "yarn_ext_factor is not supported",
        ),
        (
            {".rope.scaling.type": "yarn", ".rope.scaling.yarn_log_multiplier": 0.1},
            "yarn_log_multiplier=",
        ),
    ],
)
def test_what_is_not_covered_is_refused_by_its_name(tmp_path, weights, changes, words):
    path = write_gguf(tmp_path / "m.gguf", weights, **changes)
    with pytest.raises(InputError, match=words) as caught:
        read_checkpoint(str(path))
    assert str(path) in str(caught.value)


def test_a_quantisation_that_the_package_cannot_undo(tmp_path, weights):
    kind = gguf.GGMLQuantizationType.I32
    extra = {"blk.0.odd": np.zeros(64, np.int32)}
    path = write_gguf(tmp_path / "m.gguf", weights, extra=extra)
    with pytest.raises(InputError, match=f"quantisation {kind.name} of blk.0.odd is unknown"):
        read_checkpoint(str(path))


def test_cut_file_at_any_length_is_one_sentence(tmp_path, weights):
    whole = write_gguf(tmp_path / "whole.gguf", weights).read_bytes()
    cuts = np.random.default_rng(0).integers(0, len(whole), 40).tolist()
    for size in [0, 3, 20, 4000, *cuts]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            read_checkpoint(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
