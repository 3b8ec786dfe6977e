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
from ...methods.base import Policy
from ..common import Prompts, forward_replaced
from .decoder import TorchDecoder


class SessionCache:
    """What transformers takes for its cache: a session, no bytes of its own."""

    is_compileable = False

    def __init__(self, session: Session) -> None:
        self.session = session

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, evicted or not: positions go on from the original length."""
        return self.session.cache.seen

    def crop(self, *_) -> None:
        """Assisted generation wants this for the drafted tokens that it rejects."""
        raise InputError("eviction cannot take tokens back, which drafted tokens would need")


@contextmanager
def evict(model: PreTrainedModel, policy: Policy, example: int = 0) -> Iterator[list[Session]]:
    """The part of transformers in :func:`kvevict.evict`, which has the contract.

    ``model(...)`` gives the logits of every token passed in, and its ``past_key_values`` goes on
    with the sequence that it came from, whichever prompt was the last: who keeps it keeps that
    sequence's cache. With ``prefill_chunk_size`` the first chunk is the prompt, and the others go
    on with it.
    """
    prompts = Prompts(TorchDecoder(model), policy, example)

    @torch.no_grad()
    def forward(
        input_ids=None, past_key_values=None, inputs_embeds=None, attention_mask=None, **others
    ):
        if others.get("use_cache") is False:
            raise InputError("eviction is of the cache: leave use_cache on")
        session = _session(past_key_values)
        given = input_ids if inputs_embeds is None else inputs_embeds
        hidden, session = prompts.take_in(given, session, attention_mask, **others)
        # The norm widens to float32: by chunks, this is less than a layer took.
        parts = [model.base_model.norm(part) for part in hidden.split(CHUNK, dim=1)]
        return BaseModelOutputWithPast(torch.cat(parts, dim=1), SessionCache(session))

    with forward_replaced(model.base_model, forward):
        yield prompts.sessions


def _session(past: Any) -> Session | None:
    """The session in the place of a cache; None without one, or for the empty one of `generate`."""
    if past is None or (isinstance(past, DynamicCache) and not past.get_seq_length()):
        return None
    if not isinstance(past, SessionCache):
        raise InputError(f"eviction has a cache of its own, and cannot use a {type(past).__name__}")
    return past.session
