"""What a config.json says, in one set of keys; what would change the arithmetic unseen is refused.

Every key is one of four kinds: understood, and kept; harmless, and left out; of one value only
(:attr:`Family.constants`); or not known, which is refused by its name unless the value says that
nothing is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvevict.errors import InputError
from kvevict.models.families import Family, by_config
from kvevict.models.rope import check_rope, rope_kind
from kvevict.models.weights import quantised

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_UNDERSTOOD = {
    *SIZES,
    *("architectures", "model_type", "rms_norm_eps", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("rope_theta", "rope_scaling"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
}
_NOPE = {"no_rope_layers", "no_rope_layer_interval"}
_CONSTANTS = {"hidden_act": "silu", "partial_rotary_factor": 1.0}
# No value of these changes what a model computes, one token after another, without dropout.
# pretraining_tp only says in how many parts products were once summed.
_HARMLESS = {
    *("torch_dtype", "dtype", "transformers_version", "transformers.js_config"),
    *("unsloth_version", "unsloth_fixed", "is_llama_config", "model_name", "name_or_path"),
    *("initializer_range", "attention_dropout", "residual_dropout", "hidden_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "neftune_noise_alpha", "pretraining_tp"),
    *("use_cache", "return_dict", "torchscript", "id2label", "label2id", "num_labels"),
    *("task_specific_params", "problem_type", "tokenizer_class", "max_length", "max_new_tokens"),
    *("max_sequence_length", "model_max_length", "min_length", "num_return_sequences"),
    *("do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
    *("num_beams", "num_beam_groups", "length_penalty", "diversity_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("chunk_size_feed_forward", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
    *("seq_length", "use_flash_attention", "use_flash_attention_for_generation"),
    *("use_last_token_for_generation", "immediate_clear_past_key_value", "use_fused_rope"),
    *("use_fused_rms_norm", "recompute", "recompute_granularity", "tensor_parallel_output"),
    *("virtual_pp_degree", "dpo_config", "paddlenlp_version"),
}


def normalise_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The keys of ``config`` that matter, checked, with what it leaves out filled in.

    ``rope_parameters``, as transformers 5 writes it, becomes ``rope_theta`` and ``rope_scaling``,
    and so do PaddleNLP's ``rope_scaling_type`` and ``rope_scaling_factor``. What comes out may go
    in again.

    Raises:
        InputError: another family, quantised weights, a missing size, or a key that no entry
            covers, by its name.
    """
    family = by_config(config, source)
    try:
        how = config.get("quantization_config")
        if how:
            raise quantised(how.get("quant_method") if isinstance(how, Mapping) else how)
        known = _kept(_rope_merged({**family.defaults, **config}), family)
        known.update(architectures=[family.architecture], model_type=family.model_type)
        _check_sizes(known)
        _check_windows(known)
        if family.nope:
            known["no_rope_layers"] = _rotated_layers(known)
        _complete_yarn(known)
        check_rope(known)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return known


def max_positions(config: Mapping[str, Any]) -> int:
    """The longest sequence that a model computes as it was meant to.

    YaRN stretches the original context by its factor, whether or not ``max_position_embeddings``
    says so. Up to the length of a sliding window, attention through it is full attention.
    """
    positions, scaling = config["max_position_embeddings"], config.get("rope_scaling") or {}
    if rope_kind(config) == "yarn":
        original = scaling.get("original_max_position_embeddings") or positions
        positions = max(positions, int(original * (scaling.get("factor") or 1.0)))
    return min(positions, sliding_window(config) or positions)


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """Tokens that a layer with a window attends to, itself among them; None without a window."""
    return config.get("sliding_window") if config.get("use_sliding_window", True) else None


def _rope_merged(config: dict[str, Any]) -> dict[str, Any]:
    parameters = config.pop("rope_parameters", None)
    kind = config.pop("rope_scaling_type", None)
    factor = config.pop("rope_scaling_factor", None)
    scaling = config.get("rope_scaling")
    if bool(parameters) + (kind is not None) + bool(scaling) > 1:
        raise InputError("rope_parameters, rope_scaling_type and rope_scaling exclude one another")
    if kind is not None:
        scaling = {"rope_type": kind, "factor": factor or 1.0}
    elif factor not in (None, 1.0):
        raise InputError(f"rope_scaling_factor={factor!r} means nothing without rope_scaling_type")
    scaling = parameters or scaling or {}
    if not isinstance(scaling, Mapping):
        raise InputError(f"rope_scaling={scaling!r} is not a set of keys")
    scaling = dict(scaling)
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta")
    return {**config, "rope_theta": theta or 10000.0, "rope_scaling": scaling or None}


def _kept(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    constants = {**_CONSTANTS, **family.constants}
    understood = _UNDERSTOOD | (_NOPE if family.nope else set())
    kept = {}
    for key, value in config.items():
        if key in understood or (key in constants and value == constants[key]):
            kept[key] = value
        elif not _says_nothing(key, value) or (key in constants and value is not None):
            rest = "; if it changes no arithmetic, take it out of the file"
            if key in constants:
                rest = f", only {constants[key]!r}"
            raise InputError(f"{key}={value!r} is not supported in a {family.name} model{rest}")
    return kept


def _says_nothing(key: str, value: Any) -> bool:
    harmless = key in _HARMLESS or key.startswith("_")
    return harmless or value is None or value is False or value in ([], {}, "")


def _check_sizes(config: dict[str, Any]) -> None:
    heads, hidden = (_positive(config, key) for key in ("num_attention_heads", "hidden_size"))
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = heads
    kv_heads, own = _positive(config, "num_key_value_heads"), config.get("head_dim") is not None
    if heads % kv_heads or (hidden % heads and not own):
        raise InputError(
            f"hidden_size {hidden}, num_attention_heads {heads} and num_key_value_heads {kv_heads} "
            "do not divide one another"
        )
    if not own:
        config["head_dim"] = hidden // heads
    for key in SIZES:
        _positive(config, key)
    if config["head_dim"] % 2:
        raise InputError(f"head_dim must be even, not {config['head_dim']}")
    epsilon = config.setdefault("rms_norm_eps", 1e-6)
    if not isinstance(epsilon, (int, float)) or epsilon <= 0:
        raise InputError(f"rms_norm_eps must be a positive number, not {epsilon!r}")


def _check_windows(config: dict[str, Any]) -> None:
    if sliding_window(config) is not None:
        _positive(config, "sliding_window")
    types = config.get("layer_types")
    if types is None:
        return
    if not isinstance(types, list):
        raise InputError(f"layer_types must be a list, not {types!r}")
    allowed = {"full_attention"}
    if sliding_window(config) is not None:
        allowed.add("sliding_attention")
    if len(types) != config["num_hidden_layers"] or set(types) - allowed:
        raise InputError(
            f"layer_types={types!r} is not supported: {config['num_hidden_layers']} times "
            f"{' or '.join(sorted(allowed))} is"
        )


def _rotated_layers(config: Mapping[str, Any]) -> list[int]:
    """One number a layer: 0 where it turns nothing."""
    layers, given = config["num_hidden_layers"], config.get("no_rope_layers")
    if given is None:
        interval = _positive(config, "no_rope_layer_interval")
        return [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(given, list) or len(given) != layers or set(given) - {0, 1}:
        raise InputError(f"no_rope_layers must be {layers} zeros and ones, not {given!r}")
    return list(given)


def _complete_yarn(config: dict[str, Any]) -> None:
    if rope_kind(config) != "yarn":
        return
    scaling, positions = config["rope_scaling"], config["max_position_embeddings"]
    original = scaling.get("original_max_position_embeddings") or positions
    factor = scaling.get("factor")
    if not all(isinstance(number, (int, float)) for number in (original, factor or 1.0)):
        raise InputError(f"rope_scaling={scaling!r} has no numbers")
    scaling["original_max_position_embeddings"] = original
    scaling["factor"] = factor or positions / original


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{key} must be a positive integer, not {value!r}")
    return value
