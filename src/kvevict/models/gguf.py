"""GGUF files of Llama and Qwen2 models: weights dequantised, tokenizer rebuilt."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvevict.errors import InputError
from kvevict.models.chat import ChatTemplate
from kvevict.models.checkpoint import Checkpoint, normalise_config
from kvevict.models.tokenizer import FastTokenizer

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BIASED = ("attn_q", "attn_k", "attn_v")  # in Qwen2
# How Llama 3 and Qwen2 split text into words, as published with their tokenizers: they differ in
# how many digits go together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
# Qwen2's chat models end a turn with the first, which the file names, and a text with the second.
_QWEN2_ENDS = ("<|im_end|>", "<|endoftext|>")
_CHUNK = 1 << 20  # values dequantised at a time
_CONTROL, _USER_DEFINED = 3, 4  # gguf token types


def read_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file; tensors are dequantised one by one when asked for.

    Raises `InputError` for a damaged file, another architecture, a quantisation that the gguf
    package cannot undo, or a tokenizer other than byte-level BPE.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the parser trips over damage in many ways
        raise InputError(f"{path} is not a whole GGUF file: {error}") from error
    architecture = fields.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"{path}: only Llama and Qwen2 models can be loaded, this one is {architecture}"
        )
    config = _config(fields, reader.tensors, str(path))
    return Checkpoint(
        source=str(path),
        config=config,
        tensors=dict(
            _tensor(t, config, path) for t in reader.tensors if t.name != "rope_freqs.weight"
        ),
        tokenizer=_tokenizer(fields, path),
        eos_ids=_eos_ids(fields),
        chat=_chat_template(fields, path),
    )


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's reordering of query and key rows.

    Llama's GGUF files pair dimensions (2i, 2i+1) for the rotation, Hugging Face's layout pairs
    (i, i + head_dim/2). `weight` is `[heads * head_dim, in]`, and so is the result.
    """
    rows, columns = weight.shape
    return (
        weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _config(fields: dict, tensors: list, source: str) -> dict:
    architecture = fields["general.architecture"]

    def get(key: str, default=None):
        return fields.get(f"{architecture}.{key}", default)

    shapes = {tensor.name: tensor for tensor in tensors}
    config = {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "vocab_size": len(fields.get("tokenizer.ggml.tokens", ())),
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "head_dim": get("rope.dimension_count"),
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    kind = get("rope.scaling.type", "none")
    if kind != "none":
        config["rope_scaling"] = {"rope_type": kind, "factor": get("rope.scaling.factor")}
    if "rope_freqs.weight" in shapes:
        factors = shapes["rope_freqs.weight"].data.astype(np.float64).tolist()
        config["rope_scaling"] = {"rope_type": "factors", "factors": factors}
    return normalise_config(config, source)


def _tensor(tensor, config: dict, path: Path) -> tuple[str, Callable[[], np.ndarray]]:
    name, qwen2 = _NAMES.get(tensor.name), config["model_type"] == "qwen2"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", tensor.name)
    biased = _BIASED if qwen2 else ()
    if block and block[2] in (biased if block[3] == "bias" else _BLOCK_NAMES):
        name = f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}.{block[3]}"
    if name is None:
        raise InputError(f"{path} has a tensor that Llama does not: {tensor.name}")
    # Qwen2's rows are in Hugging Face's order.
    permuted = {} if qwen2 else {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    heads = permuted.get(name.split(".")[-2])

    def read() -> np.ndarray:
        try:
            weight = _dequantised(tensor)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise InputError(f"{path}: quantisation {kind} of {tensor.name} is unknown") from error
        return unpermute(weight, config[heads]) if heads else weight

    return name, read


def _dequantised(tensor) -> np.ndarray:
    """The tensor as float32, some rows at a time: the gguf package copies what it works on."""
    from gguf.quants import dequantize

    whole = np.empty(tensor.shape[::-1], dtype=np.float32)
    rows = max(1, _CHUNK // int(tensor.shape[0]))
    for start in range(0, len(whole), rows):
        whole[start : start + rows] = dequantize(
            tensor.data[start : start + rows], tensor.tensor_type
        )
    return whole


def _eos_ids(fields: dict) -> tuple[int, ...]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [fields.get(f"tokenizer.ggml.{key}") for key in keys]
    if fields["general.architecture"] == "qwen2":
        tokens = fields.get("tokenizer.ggml.tokens", [])
        ids += [tokens.index(end) for end in _QWEN2_ENDS if end in tokens]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def _chat_template(fields: dict, path: Path) -> ChatTemplate | None:
    source = fields.get("tokenizer.chat_template")
    if source is None:
        return None
    ids = {role: fields.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    tokens = fields["tokenizer.ggml.tokens"]
    special = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
    return ChatTemplate(source, special, str(path))


def _tokenizer(fields: dict, path: Path) -> FastTokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if model != "gpt2":
        raise InputError(f"{path}: only byte-level BPE tokenizers can be read, this one is {model}")
    try:
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        vocab = {token: i for i, token in enumerate(tokens)}
        merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
        backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the tokenizers package raises bare Exception
        raise InputError(f"{path}: the tokenizer in it is not complete: {error}") from error
    backend.pre_tokenizer = _pre_tokenizer(pre, path)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    if fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        bos_id = fields["tokenizer.ggml.bos_token_id"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos_id]} $A", special_tokens=[(tokens[bos_id], bos_id)]
        )
    return FastTokenizer(backend)


def _pre_tokenizer(pre: str, path: Path):
    from tokenizers import Regex, pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in ("default", "gpt-2"):
        return gpt2
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if pre in _DIGITS:
        split = pre_tokenizers.Split(Regex(_WORDS.format(digits=_DIGITS[pre])), "isolated")
        raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, raw])
    raise InputError(f"{path}: the pre-tokenizer {pre!r} is not known")
