"""Which prompt positions every layer and head of a model kept, method by method."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvevict import files
from kvevict.errors import InputError
from reporting.load import Result, answer_spans


@dataclass(frozen=True)
class Kept:
    """One prompt, and what each method kept of it.

    Attributes:
        model, task, example: whose prompt it is.
        keep_ratio: share of the cache that each method may keep.
        tokens: the prompt, token by token; a character of several tokens stands at its last.
        answer: indices of the tokens in which the answer stands.
        masks: for each method a bool array ``[layers, kv_heads, tokens]``.
    """

    model: str
    task: str
    example: int
    keep_ratio: float
    tokens: list[str]
    answer: list[int]
    masks: dict[str, np.ndarray]

    def is_of(self, results: list[Result]) -> bool:
        """Whether results have its model and task, and each of its methods at its ratio."""
        there = {
            (result.settings["model"], result.task, policy["name"], policy["keep_ratio"])
            for result in results
            for policy in [result.settings["policy"]]
        }
        here = {(self.model, self.task, method, self.keep_ratio) for method in self.masks}
        return here <= there

    def to_json(self) -> dict[str, Any]:
        """Plain values. Each mask is one bit a position, lowest first, every head on whole bytes,
        in base64: a 4,096-token prompt, 30 layers, 3 heads and 6 methods take 0.4 MB."""
        layers, heads, _ = next(iter(self.masks.values())).shape
        fields = {k: v for k, v in vars(self).items() if k != "masks"}
        packed = {
            method: base64.b64encode(np.packbits(mask, axis=-1, bitorder="little")).decode()
            for method, mask in self.masks.items()
        }
        return {**fields, "layers": layers, "kv_heads": heads, "masks": packed}

    def save(self, path: Path) -> None:
        """Write :meth:`to_json`."""
        files.write(path, json.dumps(self.to_json()) + "\n")


def load(path: Path) -> Kept:
    """What :meth:`Kept.save` wrote.

    Raises:
        InputError: the file cannot be read or is another one.
    """
    try:
        fields = json.loads(path.read_text("utf-8"))
        layers, heads, tokens = fields.pop("layers"), fields.pop("kv_heads"), len(fields["tokens"])
        masks = {}
        for method, text in fields.pop("masks").items():
            packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
            rows = packed.reshape(layers, heads, (tokens + 7) // 8)
            masks[method] = np.unpackbits(rows, axis=-1, count=tokens, bitorder="little") > 0
        return Kept(**fields, masks=masks)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not what `report.py kept` writes") from None


def answer_tokens(tokens: list[str], label: Any) -> list[int]:
    """Indices of the tokens that overlap with an occurrence of the answer."""
    spans = answer_spans("".join(tokens), label)
    marked, at = [], 0
    for index, text in enumerate(tokens):
        if any(start < at + len(text) and at < end for start, end in spans):
            marked.append(index)
        at += len(text)
    return marked
