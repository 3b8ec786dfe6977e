"""GGUF files, written here by the gguf package, against a float64 model in GGUF's own layout."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from kvevict import backends
from kvevict.errors import InputError
from tests.reference_llama import DIMS, logits, paddle_logits, plain_frequencies, random_weights

IDS = np.random.default_rng(5).integers(0, DIMS["vocab_size"], 40).tolist()
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BOS, EOT = 298, 299
MERGES = ["h e", "l l", "he ll", "Ġ Ġ", "1 2", "12 3", "3 4"]


def gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{BLOCK[rest[: -len('.weight')]]}.weight"


def write_gguf(path: Path, weights: dict, pre: str = "gpt-2", arch: str = "llama", **changes):
    """A file of a `DIMS` model.

    `changes` may set `quant`, `tokenizer`, `specials`, `template`, and tensors in `extra`.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(DIMS["max_position_embeddings"])
    writer.add_embedding_length(DIMS["hidden_size"])
    writer.add_block_count(DIMS["num_hidden_layers"])
    writer.add_feed_forward_length(DIMS["intermediate_size"])
    writer.add_head_count(DIMS["num_attention_heads"])
    writer.add_head_count_kv(DIMS["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(20000.0)
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*sorted(ByteLevel.alphabet()), *merged, "hello"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), 298)]
    tokens += changes.get("specials", ["<|begin_of_text|>", "<|eot_id|>"])
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 298 + [3, 3])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOT)
    if "template" in changes:
        writer.add_chat_template(changes["template"])
    quant = changes.get("quant")
    for name, array in weights.items():
        if quant is None or array.ndim == 1:
            writer.add_tensor(gguf_name(name), array)
        else:
            data = gguf.quants.quantize(array, quant)
            writer.add_tensor(gguf_name(name), data, raw_dtype=quant)
    for name, array in changes.get("extra", {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    loaded = backends.load(str(path))
    assert (loaded.max_positions, loaded.eos_ids) == (512, (EOT,))
    frequencies = plain_frequencies(20000.0)
    expected = logits(weights, IDS, frequencies, interleaved=True)
    # The rotation matters at these sizes, so that a forgotten permutation would show.
    assert np.abs(expected - logits(weights, IDS, frequencies)).max() > 1.0
    np.testing.assert_allclose(paddle_logits(loaded.model, IDS), expected, atol=2e-4, rtol=1e-4)


def test_frequency_factors_and_tied_embeddings(tmp_path):
    weights = random_weights(np.random.default_rng(4), tied=True)
    factors = np.linspace(1.0, 8.0, 8).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", weights, extra={"rope_freqs.weight": factors})
    expected = logits(weights, IDS, plain_frequencies(20000.0) / factors, interleaved=True)
    actual = paddle_logits(backends.load(str(path)).model, IDS)
    np.testing.assert_allclose(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["123", "4", "Ġ", "hell", "o"]),
        ("smollm", ["1", "2", "3", "4", "Ġ", "hell", "o"]),
        ("llama-bpe", ["<|begin_of_text|>", "123", "4", "Ġ", "hell", "o"]),
        ("qwen2", ["1", "2", "3", "4", "Ġ", "hell", "o"]),
    ],
)
def test_tokenizer_of_each_family(tmp_path, weights, pre, words):
    path = write_gguf(tmp_path / "m.gguf", weights, pre=pre)
    tokenizer = backends.load(str(path)).tokenizer
    ids = tokenizer.encode("1234 hello")
    assert [tokenizer.backend.id_to_token(i) for i in ids] == words
    assert tokenizer.decode(ids) == "1234 hello"
    assert tokenizer.encode("<|eot_id|>")[-1] == EOT
    # Llama 3 takes a word that is in its vocabulary whole, even if no merges lead to it.
    whole = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("hello")]
    assert (whole[-1] == "hello") == (pre == "llama-bpe")


def test_refused_files(tmp_path, weights):
    cases = {
        "this one is mamba": {"arch": "mamba"},
        "byte-level BPE .* this one is llama": {"tokenizer": "llama"},
        "pre-tokenizer 'tekken' is not known": {"pre": "tekken"},
        r"Llama does not: blk\.0\.attn_q\.bias": {
            "extra": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
        },
    }
    for words, changes in cases.items():
        path = write_gguf(tmp_path / "m.gguf", weights, **changes)
        with pytest.raises(InputError, match=words):
            backends.load(str(path))


def test_cut_file_at_any_length_is_one_sentence(tmp_path, weights):
    whole = write_gguf(tmp_path / "whole.gguf", weights).read_bytes()
    cuts = np.random.default_rng(0).integers(0, len(whole), 40).tolist()
    for size in [0, 3, 20, 4000, *cuts]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            backends.load(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
