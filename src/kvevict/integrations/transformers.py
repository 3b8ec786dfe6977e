"""Hugging Face's Llama on PyTorch: the model taken apart, and ``model.generate`` (optional)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..errors import InputError
from ..generate import CHUNK
from ..policies.base import Policy
from ..session import Session
from ..tensors import Tensor
from .common import Prompts, Rotations, forward_replaced


class TransformersDecoder:
    """A ``LlamaForCausalLM`` of transformers as a :class:`kvevict.session.Decoder`."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        config = model.config
        rope = getattr(model.model.rotary_emb, "rope_type", "default")
        if rope in ("dynamic", "longrope"):
            raise InputError(f"RoPE of type {rope!r} turns older keys again as a sequence grows")
        if len({parameter.device for parameter in model.parameters()}) > 1:
            raise InputError("load the model onto one device")
        self.model = model
        self.layers = config.num_hidden_layers
        self.kv_heads = config.num_key_value_heads
        self.head_dim = model.model.layers[0].self_attn.head_dim
        self.max_positions = config.max_position_embeddings
        self._rotations = Rotations(self.layers, partial(_tables, model.model.rotary_emb))

    @torch.no_grad()
    def embed(self, ids: list[int] | Tensor) -> Tensor:
        """See :class:`~kvevict.session.Decoder`; ids on the device are ``[sequences, tokens]``."""
        if not isinstance(ids, torch.Tensor):
            ids = torch.tensor([ids], device=self.model.device)
        return self.model.model.embed_tokens(ids)

    @torch.no_grad()
    def project(
        self, layer: int, hidden: Tensor, start: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`~kvevict.session.Decoder`; ``start`` may be int64 ``[1]`` on the device."""
        block = self.model.model.layers[layer]
        x = block.input_layernorm(hidden)
        attention = block.self_attn
        q, k, v = (
            projection(x).view(*hidden.shape[:2], -1, self.head_dim).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        cos, sin = self._rotations(layer, start, x)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    @torch.no_grad()
    def complete(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """See :class:`~kvevict.session.Decoder`."""
        block = self.model.model.layers[layer]
        hidden = hidden + block.self_attn.o_proj(mixed)
        return hidden + block.mlp(block.post_attention_layernorm(hidden))

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """See :class:`~kvevict.session.Decoder`."""
        logits = self.model.lm_head(self.model.model.norm(hidden[:, -1:]))[:, 0].float()
        return logits[0] if len(logits) == 1 else logits

    @torch.no_grad()
    def output_projection(self, layer: int) -> Tensor:
        """See :class:`~kvevict.session.Decoder`."""
        weight = self.model.model.layers[layer].self_attn.o_proj.weight.detach().t()
        return weight.view(self.kv_heads, -1, self.head_dim, weight.shape[-1])


def _tables(
    rotary: torch.nn.Module, start: int | Tensor, tokens: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[1, tokens, head_dim]``."""
    positions = torch.arange(tokens, device=like.device) + start
    return rotary(like, positions.unsqueeze(0))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on ``[sequences, heads, tokens, head_dim]``, halves rotated as in transformers."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)


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
def evict(model: LlamaForCausalLM, policy: Policy, example: int = 0) -> Iterator[list[Session]]:
    """The part of transformers in :func:`kvevict.evict`, which has the contract.

    ``model(...)`` gives the logits of every token passed in, and its ``past_key_values`` goes on
    with the sequence that it came from, whichever prompt was the last: who keeps it keeps that
    sequence's cache. With ``prefill_chunk_size`` the first chunk is the prompt, and the others go
    on with it.
    """
    prompts = Prompts(TransformersDecoder(model), policy, example)

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
        parts = [model.model.norm(part) for part in hidden.split(CHUNK, dim=1)]
        return BaseModelOutputWithPast(torch.cat(parts, dim=1), SessionCache(session))

    with forward_replaced(model.model, forward):
        yield prompts.sessions


def _session(past: Any) -> Session | None:
    """The session in the place of a cache; None without one, or for the empty one of `generate`."""
    if past is None or (isinstance(past, DynamicCache) and not past.get_seq_length()):
        return None
    if not isinstance(past, SessionCache):
        raise InputError(f"eviction has a cache of its own, and cannot use a {type(past).__name__}")
    return past.session
