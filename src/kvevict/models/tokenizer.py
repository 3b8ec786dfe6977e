"""Text to ids and back: nothing that the evaluation does not use."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from kvevict.errors import InputError

# Where PaddleNLP keeps the vocabulary of Llama 3 (tiktoken) and of older Llamas (sentencepiece).
PADDLENLP_FILES = ("tokenizer.model", "sentencepiece.bpe.model")


class Tokenizer(Protocol):
    """What the library asks of a tokenizer."""

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Ids of ``text``, with what the model family puts around it (Llama 3:
        <|begin_of_text|>) unless ``special_tokens`` is off."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""


class FastTokenizer:
    """A ``tokenizer.json``: its post-processor already adds what the model family adds."""

    def __init__(self, backend) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        return self.backend.encode(valid_unicode(text), add_special_tokens=special_tokens).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)


class PaddleTokenizer:
    """PaddleNLP's tokenizer, for directories that have no ``tokenizer.json``."""

    def __init__(self, backend) -> None:
        self.backend = backend

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        text = valid_unicode(text)
        return list(self.backend(text, add_special_tokens=special_tokens)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        ids = [int(i) for i in ids]
        return self.backend.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def valid_unicode(text: str) -> str:
    """``text`` with surrogate pairs joined and lone surrogates, which UTF-8 lacks, as U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def added_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after a text."""
    whole, bare = tokenizer.encode("x"), tokenizer.encode("x", special_tokens=False)
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the model directory ``path``."""
    file = path / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer as Backend

        try:
            return FastTokenizer(Backend.from_file(str(file)))
        except Exception as error:  # the tokenizers package raises bare Exception
            raise InputError(f"{file} is not a tokenizer: {error}") from error
    files = [path / name for name in PADDLENLP_FILES if (path / name).is_file()]
    if not files:
        raise InputError(f"{path} has no tokenizer: neither tokenizer.json nor a .model file")
    if find_spec("paddlenlp") is None:
        raise InputError(
            f"{path} has no tokenizer.json, and only PaddleNLP can read {files[0].name}"
        )
    from kvevict.environment import quiet

    with quiet():
        from paddlenlp.transformers import AutoTokenizer
    try:
        return PaddleTokenizer(AutoTokenizer.from_pretrained(str(path)))
    except Exception as error:  # sentencepiece and tiktoken each raise their own
        reason = " ".join(str(error).split())
        raise InputError(f"{files[0]} is not a tokenizer: {reason}") from error
