"""Eviction within PaddleNLP's ``model.generate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
from paddlenlp.transformers import PretrainedModel
from paddlenlp.transformers.model_outputs import CausalLMOutputWithCrossAttentions

from ...engine.session import Session
from ...errors import InputError
from ...methods import Policy
from ..hook import Call, Hook, Sequences, check_model, replaced
from .decoder import PaddleDecoder

LIBRARIES = ("paddle.nn.", "paddlenlp.transformers.", "kvevict.")
HOOKS = ("_forward_pre_hooks", "_forward_post_hooks")


class SequencesCache(Sequence):
    """What PaddleNLP takes for the layers' keys and values: sequences after their last tokens.

    The model's own layers, or beam search, would look inside.
    """

    def __init__(self, sequences: Sequences, model: PretrainedModel) -> None:
        self.sequences, self.model = sequences, model
        self.places = sequences.mask.shape[1]

    def __len__(self) -> int:
        return self.model.config.num_hidden_layers

    def __getitem__(self, layer: int) -> Any:
        raise InputError(
            "past_key_values is of evict: it goes on within the context alone, and without beams"
        )


@contextmanager
def evict(model: PretrainedModel, policy: Policy, example: int = 0) -> Iterator[list[Session]]:
    """PaddleNLP's part of :func:`kvevict.evict`, which has the contract.

    ``model(...)`` gives the logits of the last tokens alone, and always the ``past_key_values``
    with which the sequences go on, once each.
    """
    check_model(
        model.named_sublayers(include_self=True),
        model.named_parameters(),
        LIBRARIES,
        HOOKS,
        paddle.base.framework.EagerParamBase,
    )
    hook = Hook(PaddleDecoder(model), policy, example, added=False)

    @paddle.no_grad()
    def forward(original, *args, **kwargs):
        call = Call(type(model).forward, args, kwargs)
        given, past = call.take_tokens(), _past(call.take("past_key_values"), model)
        mask, positions = call.take("attention_mask"), call.take("position_ids")
        call.take("use_cache")
        as_dict = call.take("return_dict")
        as_dict = model.config.use_return_dict if as_dict is None else as_dict
        call.refuse_rest(model)
        hidden, sequences = hook(given, past, _mask(mask, given), positions)
        logits = hook.decoder.logits(hidden).reshape([len(given), 1, -1])
        outputs = CausalLMOutputWithCrossAttentions(
            logits=logits, past_key_values=SequencesCache(sequences, model)
        )
        return outputs if as_dict else outputs.to_tuple()

    with replaced(model, "forward", forward):
        yield hook.sessions


def _past(past: Any, model: PretrainedModel) -> Sequences | None:
    """The sequences that go on, None without any."""
    if past is None:
        return None
    if not isinstance(past, SequencesCache):
        raise InputError("eviction has a cache of its own: past_key_values is of another")
    if past.model is not model or past.places != past.sequences.mask.shape[1]:
        raise InputError("past_key_values is of another model, or has gone on since")
    return past.sequences


def _mask(mask: paddle.Tensor | None, given: paddle.Tensor) -> paddle.Tensor | None:
    """Without a mask ``generate`` makes one ``[rows, 1, 1, tokens]`` to be added to the scores."""
    if mask is None or not mask.is_floating_point() or list(mask.shape[1:-1]) != [1, 1]:
        return mask
    return mask[:, 0, 0] == 0
