"""Tokenizers rebuilt from GGUF's metadata."""

from __future__ import annotations

import io
import pydoc_data.topics

import numpy as np
import pytest

from kvevict.errors import InputError
from kvevict.models import load_tokenizer
from tests.models.gguf_file import BOS, EOT, write_gguf
from tests.reference_llama import random_weights

PROSE = "\n".join(pydoc_data.topics.topics.values())


@pytest.fixture
def tokenizer(tmp_path):
    """Makes the tokenizer of a file with the metadata given, those of ``tokenizer.ggml``."""
    weights = random_weights(np.random.default_rng(21))

    def make(**changes):
        metadata = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        return load_tokenizer(str(write_gguf(tmp_path / "m.gguf", weights, **metadata)))

    return make


def words(tokenizer, text: str) -> list[str]:
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["123", "4", "Ġ", "hell", "o"]),
        ("smollm", ["1", "2", "3", "4", "Ġ", "hell", "o"]),
        ("llama-bpe", ["<|begin_of_text|>", "123", "4", "Ġ", "hell", "o"]),
        ("qwen2", ["1", "2", "3", "4", "Ġ", "hell", "o"]),
        ("deepseek-r1-qwen", ["1", "2", "3", "4", "Ġ", "hell", "o"]),
        ("default", ["123", "4", "Ġ", "hell", "o"]),
        (None, ["123", "4", "Ġ", "hell", "o"]),
    ],
)
def test_pre_tokenizer_of_each_family(tokenizer, pre, expected) -> None:
    made = tokenizer(pre=pre)
    assert words(made, "1234 hello") == expected
    assert made.decode(made.encode("1234 hello")) == "1234 hello"
    assert made.encode("<|eot_id|>")[-1] == EOT
    # Llama 3 takes a word that is in its vocabulary whole, even if no merges lead to it.
    assert (words(made, "hello")[-1] == "hello") == (pre == "llama-bpe")


def test_digits_go_in_threes_where_nothing_is_said(tokenizer) -> None:
    assert words(tokenizer(pre="gpt-2"), "5534") == ["5", "5", "34"]
    assert words(tokenizer(pre=None), "5534") == ["5", "5", "3", "4"]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({}, "h"),
        ({"add_bos_token": True}, "<|begin_of_text|>"),
        ({"pre": "llama-bpe"}, "<|begin_of_text|>"),
        ({"pre": "llama-bpe", "add_bos_token": False}, "h"),
        ({"bos_token_id": None}, "h"),
    ],
)
def test_what_texts_begin_with(tokenizer, changes, first) -> None:
    made = tokenizer(**changes)
    assert words(made, "h")[0] == first
    assert (made.encode("h")[0] == BOS) == (first != "h")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "bert"}, "only byte-level BPE .* and SentencePiece .* this one is bert"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken' is not known"),
        ({"pre": "llama-bpe", "bos_token_id": None}, "bos_token_id is not there"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id is not there"),
        ({"add_bos_token": True, "bos_token_id": 300}, "bos_token_id is 300"),
        ({"add_eos_token": True}, "add_eos_token=True is not supported"),
        ({"merges": None}, r"not complete: KeyError\('tokenizer.ggml.merges'\)"),
        ({"merges": ["h q7"]}, "not complete"),
        ({"model": "llama"}, r"not complete: KeyError\('tokenizer.ggml.scores'\)"),
    ],
)
def test_what_cannot_be_rebuilt_is_one_sentence(tokenizer, changes, sentence) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        tokenizer(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tokenizer, prefix) -> None:
    """As Llama 2 and Mistral have it: what has no piece of its own becomes bytes."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="comes with PaddleNLP")
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.splitlines()[:1500]),
        model_writer=trained,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    indices = range(theirs.vocab_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in indices
    ]
    ours = tokenizer(
        model="llama",
        tokens=[theirs.id_to_piece(i) for i in indices],
        scores=[theirs.get_score(i) for i in indices],
        token_type=kinds,
        merges=None,
        bos_token_id=None,  # 1 where nothing is said
        add_space_prefix=None if prefix else False,
    )
    draw = np.random.default_rng(3)
    texts = ["", " ", "a", "two  spaces\n\nand lines\t", "Ünïcode 猫 🐈 \u200d", "x" * 50]
    for start in draw.integers(0, len(PROSE) - 400, 40):
        texts.append(PROSE[start : start + int(draw.integers(1, 400))])
    for text in texts:
        ids = ours.encode(text)
        assert ids == [1, *theirs.encode(text)], text
        assert ours.decode(ids) == text
