"""The built-in's tokenizer: round trips, digits, surrogates, and the same ids as transformers."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict.errors import InputError
from kvevict.models.tokenizer import read_tokenizer, valid_unicode

MIXED = (
    "The pass key is 71432. 密钥是 71432。 Ключ — 71432! मुख्य कुंजी; المفتاح ٧١٤٣٢ 🗝️👩‍👩‍👧\t\r\n\n"
    "  def f(x):\n        return x**2  # naïve café\u200b\ufeff \x00end"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<repo_name>"]


@pytest.fixture(scope="module")
def tokenizer(builtin_dir):
    return read_tokenizer(builtin_dir)


def test_mixed_scripts_round_trip(tokenizer):
    assert tokenizer.decode(tokenizer.encode(MIXED)) == MIXED
    assert tokenizer.encode("") == []


# The vocabulary lacks the bytes of unassigned planes and of some control characters.
TEXT = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc", "Cn", "Co"])


@given(text=st.text(TEXT))
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(number=st.from_regex(r"[0-9]{1,20}", fullmatch=True))
@settings(deadline=None)
def test_digits_stand_alone(tokenizer, number):
    assert len(tokenizer.encode(number)) == len(number)


def test_special_tokens_are_single_ids_and_not_decoded(tokenizer):
    ids = tokenizer.encode("<|im_start|>user")
    assert ids[0] == 1
    assert tokenizer.decode(ids) == "user"


def test_surrogates(tokenizer):
    assert valid_unicode("a\ud83d\ude00b") == "a😀b"
    assert tokenizer.decode(tokenizer.encode("x\ud800y\udfff")) == "x\ufffdy\ufffd"


def test_same_ids_as_transformers(tokenizer, builtin_dir):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(builtin_dir)
    for text in [MIXED, *SPECIALS, *MIXED.split(" "), " ".join(SPECIALS)]:
        assert tokenizer.encode(text) == theirs(text)["input_ids"]


def test_directory_with_sentencepiece_only(tmp_path, builtin_dir):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the pass key is five", "what is the pass key"] * 20),
        model_writer=model,
        vocab_size=17,
        minloglevel=2,
    )
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = read_tokenizer(tmp_path)
    ids = tokenizer.encode("the pass key")
    assert ids[0] == 1  # Llama 2 begins with <s>
    assert tokenizer.decode(ids) == "the pass key"
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"sentencepiece\.bpe\.model is not a tokenizer"):
        read_tokenizer(tmp_path)
