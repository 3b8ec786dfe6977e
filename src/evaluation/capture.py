"""What each layer and head of a model keeps of one prompt, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

import benchmarks
from benchmarks.examples import read_examples
from kvevict import load, prefill
from kvevict.errors import InputError
from kvevict.methods import build
from reporting.kept import Kept, answer_tokens


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
    if "full" in methods:
        raise InputError("kept draws methods that evict; full keeps everything")
    policies = [build(name, keep_ratio=keep_ratio, min_eviction_seqlen=0) for name in methods]
    benchmark = benchmarks.get()
    task, *others = benchmark.resolve(task_name)
    if others:
        raise InputError(f"--task takes one task, not {task_name}")
    examples = list(read_examples(benchmark, task, data_dir))
    if not 0 <= example_id < len(examples):
        raise InputError(f"--example {example_id}: {task.file} has 0 to {len(examples) - 1}")
    example = examples[example_id]
    loaded = load(model_path, device=device, framework=framework)
    ids = loaded.tokenizer.encode(task.prompt(example.fields).text)
    sessions = prefill(
        loaded.decoder(), ids, policies, example.id, record=True, repetition=loaded.repetition
    )
    tokens = token_texts(loaded.tokenizer.decode, ids)
    return Kept(
        loaded.name,
        task.name,
        example.id,
        keep_ratio,
        tokens,
        answer_tokens(tokens, task.reference(example.fields)["ground_truth"]),
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


def _mask(cache: Any, tokens: int) -> np.ndarray:
    mask = np.zeros((len(cache.layers), len(cache.layers[0].lengths), tokens), dtype=bool)
    for of_layer, layer in zip(mask, cache.layers):
        ends = np.cumsum(layer.lengths)[:-1]
        for of_head, positions in zip(of_layer, np.split(layer.positions.cpu().numpy(), ends)):
            of_head[positions] = True
    return mask
