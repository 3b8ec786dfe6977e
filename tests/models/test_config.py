"""Which config.json are taken, and by which key the others are refused."""

from __future__ import annotations

import json

import pytest

from kvevict.errors import InputError
from kvevict.models.config import max_positions, normalise_config
from kvevict.models.families import FAMILIES, by_config
from tests.models.published_configs import PUBLISHED
from tests.tiny_families import CONFIGS, SIZES

LLAMA = {**SIZES, "model_type": "llama"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_taken(name) -> None:
    config, family, head_dim, positions = PUBLISHED[name]
    known = normalise_config(json.loads(json.dumps(config)), name)
    assert by_config(known, name).name == family
    assert known["head_dim"] == head_dim
    assert max_positions(known) == positions
    assert {k: known[k] for k in ("hidden_size", "vocab_size", "tie_word_embeddings")} == {
        k: config[k] for k in ("hidden_size", "vocab_size", "tie_word_embeddings")
    }


@pytest.mark.parametrize("name", [*CONFIGS, *PUBLISHED])
def test_what_comes_out_may_go_in_again(name) -> None:
    config = PUBLISHED[name][0] if name in PUBLISHED else {**SIZES, **CONFIGS[name]}
    known = normalise_config(config, name)
    assert normalise_config(json.loads(json.dumps(known)), name) == known


def test_all_families_are_published_here() -> None:
    assert {family for _, family, *_ in PUBLISHED.values()} == {f.name for f in FAMILIES}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"hidden_act": "relu"},
            "hidden_act='relu' is .* in a Llama model, only 'silu'",
        ),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act='gelu_pytorch_tanh'"),
        ({"attention_bias": True}, "attention_bias=True is not supported in a Llama model"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 .* only 1.0"),
        ({"rope_interleaved": True}, "rope_interleaved=True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers=\[1, 0\]"),
        ({"num_local_experts": 0}, "num_local_experts=0"),
        ({"alibi": True}, "alibi=True"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Llama"}}, "auto_map="),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types="),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"layer_types": ["full_attention"]}, "layer_types=.* 2 times full_attention is"),
        ({"sliding_window": "4096"}, "sliding_window must be a positive integer"),
        ({"layer_types": "full_attention"}, "layer_types must be a list"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number, not None"),
        ({"model_type": "mistral", "architectures": ["LlamaForCausalLM"]}, "'mistral' is not that"),
        ({"architectures": ["Phi3ForCausalLM"]}, "this one is Phi3ForCausalLM"),
        ({"model_type": None}, "this one does not say what it is"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "has no numbers"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear' is not a set of keys"),
        ({"rope_scaling_factor": 4.0}, "rope_scaling_factor=4.0 means nothing"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_scaling_type": "linear"},
            "exclude one another",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "full_attention=.* in rope_scaling",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised with GPTQ"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised with AWQ"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised with bitsandbytes"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised with mxfp4"),
        ({"quantization_config": "int8"}, "quantised with int8"),
    ],
)
def test_what_no_entry_covers_is_refused_by_its_name(changes, words) -> None:
    with pytest.raises(InputError, match=words) as caught:
        normalise_config({**LLAMA, **changes}, "here/config.json")
    assert str(caught.value).startswith("here/config.json: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"alibi": False, "auto_map": None, "adapters": [], "pruned_heads": {}},
        {"_attn_implementation": "sdpa", "_name_or_path": "x", "torch_dtype": "bfloat16"},
        {"hidden_act": None, "partial_rotary_factor": 1.0, "attention_dropout": 0.1},
        {"sliding_window": 64, "use_sliding_window": False},
    ],
)
def test_what_says_nothing_is_left_out(changes) -> None:
    expected = normalise_config(LLAMA, "")
    known = normalise_config({**LLAMA, **changes}, "")
    assert {key: known[key] for key in expected} == expected
    assert max_positions(known) == 512


@pytest.mark.parametrize(
    ("model_type", "given", "filled"),
    [
        ("llama", {}, {"num_key_value_heads": 4, "head_dim": 16, "rope_theta": 10000.0}),
        ("qwen3", {}, {"num_key_value_heads": 32, "head_dim": 128}),
        ("mistral", {}, {"num_key_value_heads": 8, "sliding_window": 4096}),
        ("mistral", {"sliding_window": None}, {"num_key_value_heads": 8, "sliding_window": None}),
        ("smollm3", {}, {"rope_theta": 2e6, "tie_word_embeddings": True}),
        ("smollm3", {}, {"no_rope_layers": [1, 1, 1, 0, 1, 1]}),
    ],
)
def test_what_is_left_out_is_what_transformers_takes(model_type, given, filled) -> None:
    heads = 4 if model_type == "llama" else 32
    config = {
        **{k: SIZES[k] for k in ("vocab_size", "hidden_size", "intermediate_size")},
        **{"num_hidden_layers": 6, "num_attention_heads": heads, "max_position_embeddings": 64},
        **{"model_type": model_type, **given},
    }
    known = normalise_config(config, "")
    assert {key: known[key] for key in filled} == filled


@pytest.mark.parametrize(
    ("window", "yarn", "positions"),
    [(None, None, 512), (64, None, 64), (4096, None, 512), (None, 3.5, 448), (None, 8.0, 1024)],
)
def test_positions(window, yarn, positions) -> None:
    scaling = yarn and {
        "rope_type": "yarn",
        "factor": yarn,
        "original_max_position_embeddings": 128,
    }
    changes = {"sliding_window": window, "rope_scaling": scaling}
    known = normalise_config({**LLAMA, **changes}, "")
    assert max_positions(known) == max(positions, 512 if yarn else 0)


@pytest.mark.parametrize("layers", [7, [1, 0], [1, 2, 1, 1, 1]])
def test_layers_that_turn_nothing_are_said_one_by_one(layers) -> None:
    with pytest.raises(InputError, match="no_rope_layers must be 5 zeros and ones"):
        normalise_config({**SIZES, **CONFIGS["smollm3"], "no_rope_layers": layers}, "")


def test_yarn_without_its_original_context_or_factor() -> None:
    scaling = normalise_config({**LLAMA, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "")
    assert scaling["rope_scaling"]["original_max_position_embeddings"] == 512
    given = {"type": "yarn", "original_max_position_embeddings": 128}
    assert normalise_config({**LLAMA, "rope_scaling": given}, "")["rope_scaling"]["factor"] == 4.0
