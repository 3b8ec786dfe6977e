"""Prompts that kvpress has compressed, and answers on them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from presses import Press
from transformers import DynamicCache, PreTrainedModel

MASK = "masked_key_indices"  # where kvpress notes entries that go from some heads only


class Pressed:
    """A context as a press has left it.

    Attributes:
        cache: what is held: where heads differ, all of it.
        masks: of each layer, batch, head and place of what its heads do without; None for nothing.
    """

    def __init__(self, model: PreTrainedModel, press: Press | None, ids: list[int]) -> None:
        self.cache = DynamicCache()
        tokens = torch.tensor([ids], device=model.device)
        more = places(len(ids), model.device) if press else {}
        with torch.no_grad(), press(model) if press else nullcontext():
            model.model(input_ids=tokens, past_key_values=self.cache, **more)
        self.masks = [getattr(attention, MASK, None) for attention in _attentions(model)]
        clear_masks(model)

    @property
    def length(self) -> int:
        """Entries of a head that the cache holds."""
        return self.cache.get_seq_length()

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    rows: list[Pressed],
    seen: int,
    question: list[int],
    max_new_tokens: int,
    eos: set[int],
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Greedy answers to one question, side by side; the rows are used up.

    Args:
        rows: caches of one length, as of the presses that keep the same share.
        seen: tokens of the context: the question's positions go on from there.
        max_new_tokens, eos, min_new_tokens: as for :func:`kvevict.engine.decode`.
    """
    cache = _joined(model, rows)
    tokens = torch.tensor([question] * len(rows), device=model.device)
    answers: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    for step in range(max_new_tokens):
        places = torch.arange(seen, seen + tokens.shape[1], device=model.device)
        output = model(
            input_ids=tokens,
            past_key_values=cache,
            position_ids=places.expand(len(rows), -1),
            logits_to_keep=1,
        )
        seen += tokens.shape[1]
        logits = output.logits[:, -1].float()
        if step < min_new_tokens:
            logits[:, list(eos)] = -torch.inf
        tokens = logits.argmax(-1, keepdim=True)
        for row, token in enumerate(tokens.flatten().tolist()):
            ended[row] |= token in eos
            if not ended[row]:
                answers[row].append(token)
        if all(ended):
            break
    clear_masks(model)
    return answers


def places(tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What kvpress 0.5.5, made for transformers before 5.3, misses in the calls of later ones."""
    return {"cache_position": torch.arange(tokens, device=device)}


def clear_masks(model: PreTrainedModel) -> None:
    """Let go of what a press has noted on a model, which is of the prompt that it read."""
    _set_masks(model, [None] * len(_attentions(model)))


def _attentions(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Of each layer, where kvpress notes its masks."""
    return [layer.self_attn for layer in model.model.layers]


def keep_tokenizer() -> None:
    """Let KVzip's press, which reads the model's tokenizer anew for each prompt, read it once."""
    from kvpress.presses import kvzip_press

    once = cache(transformers.AutoTokenizer.from_pretrained)
    kvzip_press.AutoTokenizer = SimpleNamespace(from_pretrained=once)


def _joined(model: PreTrainedModel, rows: list[Pressed]) -> DynamicCache:
    """The caches as one batch, and on the model the masks of all."""
    joined, masks = DynamicCache(), []
    for layer in range(len(rows[0].cache.layers)):
        parts = [row.cache.layers[layer] for row in rows]
        joined.update(
            torch.cat([part.keys for part in parts]),
            torch.cat([part.values for part in parts]),
            layer,
        )
        for part in parts:  # they are not held twice
            part.keys = part.values = None
        masks.append(_mask([row.masks[layer] for row in rows], model.device))
    _set_masks(model, masks)
    return joined


def _mask(rows: list[Any], device: torch.device) -> tuple[torch.Tensor, ...] | None:
    """One layer's masks, each of a batch of one, as that of the batch."""
    found = [
        [torch.full_like(head, row, device=device), head.to(device), place.to(device)]
        for row, mask in enumerate(rows)
        if mask is not None
        for _, head, place in [mask]
    ]
    return tuple(map(torch.cat, zip(*found))) if found else None


def _set_masks(model: PreTrainedModel, masks: list[Any]) -> None:
    for attention, mask in zip(_attentions(model), masks):
        setattr(attention, MASK, mask)
