"""The tokenizer in a GGUF file's metadata, rebuilt for the tokenizers package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvevict.errors import InputError
from kvevict.models.tokenizer import FastTokenizer

# Kinds of tokens.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
# How Llama 3 and Qwen2 split text into words, as published with their tokenizers: they differ in
# how many digits go together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}", "deepseek-r1-qwen": r"\p{N}"}
# What llama.cpp does where a file does not say: one split after the other.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


def gguf_tokenizer(fields: dict[str, Any], path: Path) -> FastTokenizer:
    """Byte-level BPE, or SentencePiece's BPE with bytes for what it does not know.

    Args:
        fields: all metadata of the file.
        path: its name, for messages.

    Raises:
        InputError: a tokenizer of another kind, or one that is not complete.
    """
    from tokenizers import AddedToken, processors

    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise InputError(
            f"{path}: only byte-level BPE (gpt2) and SentencePiece (llama) tokenizers can be read, "
            f"this one is {kind}"
        )
    for key in ("add_eos_token", "add_sep_token"):
        if fields.get(f"tokenizer.ggml.{key}"):
            raise InputError(f"{path}: tokenizer.ggml.{key}=True is not supported")
    pre = fields.get("tokenizer.ggml.pre", "default")
    try:
        tokens = fields["tokenizer.ggml.tokens"]
        types = fields.get("tokenizer.ggml.token_type", [])
        backend = _byte_level(fields, pre) if kind == "gpt2" else _sentencepiece(fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # the tokenizers package raises bare Exception
        raise InputError(f"{path}: the tokenizer in it is not complete: {error!r}") from error
    special = (_CONTROL,) if kind == "gpt2" else (_UNKNOWN, _CONTROL)
    backend.add_tokens(
        [
            AddedToken(token, special=type_ in special, normalized=False)
            for token, type_ in zip(tokens, types)
            if type_ in (*special, _USER_DEFINED)
        ]
    )
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre == "llama-bpe"):
        # SentencePiece's is 1 where nothing is said.
        bos = fields.get("tokenizer.ggml.bos_token_id", 1 if kind == "llama" else None)
        if bos is None or bos >= len(tokens):
            raise InputError(
                f"{path}: texts begin with a token of their own (tokenizer.ggml.add_bos_token), "
                f"but tokenizer.ggml.bos_token_id is {'not there' if bos is None else bos}"
            )
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return FastTokenizer(backend)


def _byte_level(fields: dict[str, Any], pre: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    # Llama 3 takes a word that is in its vocabulary whole, even if no merges lead to it.
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = _words(pre)
    if pre in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _words(pre: str) -> Any:
    """What splits a text into words: ``tokenizer.ggml.pre``."""
    from tokenizers import Regex, pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "gpt-2":
        return gpt2
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if pre in _DIGITS:
        splits = [_WORDS.format(digits=_DIGITS[pre])]
    elif pre == "default":
        splits = _DEFAULT
    else:
        raise InputError(f"the pre-tokenizer {pre!r} is not known")
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits]
    return pre_tokenizers.Sequence([*made, raw])


def _sentencepiece(fields: dict[str, Any]) -> Any:
    """Merges are not in the file: any two pieces whose join is one, the best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    types = fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    vocab = {token: i for i, token in enumerate(tokens)}
    found = [
        (-scores[index], vocab[piece[:cut]], vocab[piece[cut:]])
        for piece, index in vocab.items()
        if types[index] == _NORMAL
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(found)]
    unknown = tokens[fields.get("tokenizer.ggml.unknown_token_id", 0)]
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = [normalizers.Replace(" ", "▁")]
    clean = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        clean.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(clean)
    return backend
