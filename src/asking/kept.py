"""Which passages of a document its cache has kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TextIO

import numpy as np

from kvevict import Document

COLOURED = ("\033[30;103m", "\033[0m")  # black on yellow
BRACKETED = ("⟦", "⟧")
PIECES = 4  # tokens that a character has at most


def show(document: Document, stream: TextIO) -> None:
    """Print the document with what was kept marked: in colour on a terminal, else in brackets."""
    before, after = marks(stream)
    for text, kept in passages(document):
        print(f"{before}{text}{after}" if kept else text, end="", file=stream)
    print(file=stream)


def marks(stream: TextIO) -> tuple[str, str]:
    """What stands around a passage that was kept."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return COLOURED if stream.isatty() and not plain else BRACKETED


def passages(document: Document) -> Iterator[tuple[str, bool]]:
    """The document's text in pieces, and whether each was kept."""
    kept = kept_tokens(document)
    passage, state = "", False
    for tokens, text in _pieces(document):
        marked = bool(kept[tokens].any())
        if marked != state and passage:
            yield passage, state
            passage = ""
        passage, state = passage + text, marked
    yield passage, state


def kept_tokens(document: Document) -> np.ndarray:
    """The tokens that most heads of all layers have kept: as many as a head keeps on average."""
    layers = document.prompt.session.cache.layers
    tokens = len(document.prompt.ids)
    held = np.concatenate([np.asarray(layer.positions.cpu().numpy()) for layer in layers])
    heads = np.bincount(held, minlength=tokens)
    budget = round(len(held) / (len(layers) * document.decoder.kv_heads))
    kept = np.zeros(tokens, bool)
    kept[np.argsort(-heads, kind="stable")[:budget]] = True
    return kept


def _pieces(document: Document) -> Iterator[tuple[slice, str]]:
    """Tokens that make whole characters, and their text as it is behind the tokens before."""
    ids, decode = document.prompt.ids, document.model.tokenizer.decode
    before, start = [], 0
    while start < len(ids):
        for end in range(start + 1, start + 1 + PIECES):
            text = decode(before + ids[start:end])[len(decode(before)) :]
            if not text.endswith("\ufffd"):
                break
        yield slice(start, end), text
        before, start = ids[start:end], end
