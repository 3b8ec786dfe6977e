"""Eviction within PaddleNLP's ``model.generate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddlenlp.transformers import PretrainedModel
from paddlenlp.transformers.model_outputs import BaseModelOutputWithPastAndCrossAttentions

from ...engine.session import Session
from ...errors import InputError
from ...methods.base import Policy
from ..common import Prompts, forward_replaced
from .decoder import PaddleDecoder, rms_norm


@contextmanager
def evict(model: PretrainedModel, policy: Policy, example: int = 0) -> Iterator[list[Session]]:
    """PaddleNLP's part of :func:`kvevict.evict`, which has the contract.

    The cache that PaddleNLP passes around is a stand-in of no bytes whose length is the number of
    tokens seen, so that positions go on from the original length. It means the last prompt's
    session. ``model(...)`` gives the logits of the last token alone.
    """
    prompts = Prompts(PaddleDecoder(model), policy, example)

    def forward(
        input_ids=None, past_key_values=None, inputs_embeds=None, attention_mask=None, **others
    ):
        session = _session(past_key_values, prompts.sessions)
        given = input_ids if inputs_embeds is None else inputs_embeds
        hidden, session = prompts.take_in(given, session, attention_mask, **others)
        stand_in = paddle.empty([1, session.cache.seen, prompts.decoder.kv_heads, 0])
        last = rms_norm(model.base_model.norm, hidden[:, -1:])
        stand_ins = ((stand_in, stand_in),) * prompts.decoder.layers
        outputs = BaseModelOutputWithPastAndCrossAttentions(last, stand_ins)
        return outputs if others.get("return_dict") else outputs.to_tuple()

    with forward_replaced(model.base_model, forward):
        yield prompts.sessions


def _session(past: Any, sessions: list[Session]) -> Session | None:
    """The session that a stand-in means, None without one."""
    if past is None or past[0] is None:
        return None
    if not sessions or past[0][0].shape[1] != sessions[0].cache.seen:
        raise InputError("past_key_values is not what the last prompt's last token returned")
    return sessions[0]
