"""Eviction within transformers' ``model.generate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ...engine.prefilling import CHUNK
from ...engine.session import Session
from ...errors import InputError
from ...methods import Policy
from ..hook import Call, Hook, Sequences, check_model, replaced
from .decoder import TorchDecoder

LIBRARIES = ("torch.nn.modules.", "transformers.models.", "transformers.activations.", "kvevict.")
HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class NotOurs(InputError, AttributeError):
    """What asks first finds that it is not there; what does not ask is told why."""


class SequencesCache:
    """What transformers takes for its cache: sequences, no bytes of its own."""

    is_compileable = False
    is_linear = (False,)

    def __init__(self, sequences: Sequences, model: PreTrainedModel) -> None:
        self.sequences, self.model = sequences, model

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, evicted or not, and padding: positions go on from the original length."""
        return self.sequences.mask.shape[1]

    def crop(self, *_: Any) -> None:
        """Assisted generation wants this for the drafted tokens that it rejects."""
        raise InputError("eviction cannot take tokens back, which drafted tokens would need")

    is_croppable = property(crop)

    def reorder_cache(self, *_: Any) -> None:
        """Beam search wants this for the beams that go on."""
        raise InputError("eviction takes a prompt without beams")

    def __getattr__(self, name: str) -> Any:
        """The model's own layers look for what a cache of transformers has."""
        raise NotOurs(f"past_key_values goes on within evict alone: it is no cache with {name}")


@contextmanager
def evict(model: PreTrainedModel, policy: Policy, example: int = 0) -> Iterator[list[Session]]:
    """The part of transformers in :func:`kvevict.evict`, which has the contract.

    ``model(...)`` gives the logits of every token passed in, and its ``past_key_values`` goes on
    with the sequences that it came from, whichever prompts were the last: who keeps it keeps their
    caches.
    """
    parts = list(model.named_modules())[1:]  # the model itself is called as ever
    check_model(parts, model.named_parameters(), LIBRARIES, HOOKS, torch.nn.Parameter)
    layers = model.base_model
    hook = Hook(TorchDecoder(model), policy, example, added=True)

    @torch.compiler.disable  # within a compiled model, the graph breaks here
    @torch.no_grad()
    def forward(original, *args, **kwargs):
        call = Call(type(layers).forward, args, kwargs)
        # transformers came to say "cache" for "past_key_values".
        given, pasts = call.take_tokens(), (call.take("past_key_values"), call.take("cache"))
        past = _past(next((past for past in pasts if past is not None), None), model)
        mask, positions = call.take("attention_mask"), call.take("position_ids")
        _check_places(call.take("cache_position"), past, given)
        if call.take("use_cache") is False:
            raise InputError("eviction is of the cache: leave use_cache on")
        as_tuple = call.take("return_dict") is False
        call.refuse_rest(model)
        hidden, sequences = hook(given, past and past.sequences, mask, positions)
        # The norm widens to float32: by chunks, this is less than a layer took.
        parts = [layers.norm(part) for part in hidden.split(CHUNK, dim=1)]
        cache = past or SequencesCache(sequences, model)
        outputs = BaseModelOutputWithPast(torch.cat(parts, dim=1), cache)
        return outputs.to_tuple() if as_tuple else outputs

    def generate(original, *args, **kwargs):
        _check_settings(Call(type(model).generate, args, kwargs), model)
        return original(*args, **kwargs)

    with replaced(layers, "forward", forward), replaced(model, "generate", generate):
        yield hook.sessions


def _past(past: Any, model: PreTrainedModel) -> SequencesCache | None:
    """What is in the place of a cache; None without one, or for the empty one of ``generate``."""
    if past is None or (isinstance(past, DynamicCache) and not past.get_seq_length()):
        return None
    if not isinstance(past, SequencesCache):
        raise InputError(f"eviction has a cache of its own, and cannot use a {type(past).__name__}")
    if past.model is not model:
        raise InputError("past_key_values comes from another model")
    return past


def _check_places(places: Any, past: SequencesCache | None, given: torch.Tensor) -> None:
    """``cache_position`` names the places of the tokens: those behind the ones in the cache."""
    first, new = past.get_seq_length() if past else 0, given.shape[1]
    expected = torch.arange(first, first + new, device=given.device)
    if places is not None and not torch.equal(places.to(given.device), expected):
        raise InputError(f"cache_position is not {first} … {first + new - 1}, the tokens' places")


def _check_settings(call: Call, model: PreTrainedModel) -> None:
    """What ``generate`` would do with the prompt or the cache and eviction cannot."""
    configs = [call.take("generation_config"), model.generation_config]

    def setting(name: str) -> Any:
        given = [call.take(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in given if value is not None), None)

    if setting("prefill_chunk_size"):
        raise InputError("eviction is of whole prompts: leave prefill_chunk_size out")
    if (setting("num_beams") or 1) > 1:
        raise InputError("eviction takes a prompt without beams: leave num_beams out")
