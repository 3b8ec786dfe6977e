"""Which prompt positions every layer and head of a model kept, method by method."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np

import benchmarks
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
        path.write_text(json.dumps(self.to_json()) + "\n", "utf-8")


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


def capture(
    model_path: str,
    methods: Sequence[str],
    keep_ratio: float,
    task_name: str,
    example_id: int,
    data_dir: Path,
    device: str | None = None,
    framework: str = "paddle",
) -> Kept:
    """Prefill one example once, under every method.

    Prompts are evicted from however short they are, and not cut.

    Raises:
        InputError: no such method, task, example, model or framework, or a prompt beyond the
            model's positions.
    """
    from kvevict.methods import build

    if "full" in methods:
        raise InputError("kept draws methods that evict; full keeps everything")
    policies = [build(name, keep_ratio=keep_ratio, min_eviction_seqlen=0) for name in methods]
    task, *others = benchmarks.resolve(task_name)
    if others:
        raise InputError(f"--task takes one task, not {task_name}")
    examples = benchmarks.read_examples(data_dir / task.file, task)
    if not 0 <= example_id < len(examples):
        raise InputError(f"--example {example_id}: {task.file} has 0 to {len(examples) - 1}")
    example = examples[example_id]

    from kvevict import load, prefill

    loaded = load(model_path, device=device, framework=framework)

    ids = loaded.tokenizer.encode(benchmarks.normalise(benchmarks.prompt(task, example)))
    sessions = prefill(loaded.decoder(), ids, policies, example.id, record=True)
    tokens = token_texts(loaded.tokenizer.decode, ids)
    return Kept(
        loaded.name,
        task.name,
        example.id,
        keep_ratio,
        tokens,
        answer_tokens(tokens, benchmarks.label(task, example)),
        {name: _mask(session.cache, len(ids)) for name, session in zip(methods, sessions)},
    )


def token_texts(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    """The text that each token adds; a character cut in pieces comes with the last of them.

    Each token is decoded behind the one before, since some tokenizers drop a leading space.
    """
    texts: list[str] = []
    start = 0
    for end in range(1, len(ids) + 1):
        before = decode(ids[max(0, start - 1) : start])
        text = decode(ids[max(0, start - 1) : end])[len(before) :]
        if text.endswith("\ufffd") and end - start < 4 and end < len(ids):
            texts.append("")  # UTF-8 has at most four bytes a character: wait for the rest
        else:
            texts.append(text)
            start = end
    return texts


def answer_tokens(tokens: list[str], label: Any) -> list[int]:
    """Indices of the tokens that overlap with an occurrence of the answer."""
    spans = answer_spans("".join(tokens), label)
    marked, at = [], 0
    for index, text in enumerate(tokens):
        if any(start < at + len(text) and at < end for start, end in spans):
            marked.append(index)
        at += len(text)
    return marked


def _mask(cache: Any, tokens: int) -> np.ndarray:
    mask = np.zeros((len(cache.layers), len(cache.layers[0].lengths), tokens), dtype=bool)
    for of_layer, layer in zip(mask, cache.layers):
        ends = np.cumsum(layer.lengths)[:-1]
        for of_head, positions in zip(of_layer, np.split(layer.positions.cpu().numpy(), ends)):
            of_head[positions] = True
    return mask
