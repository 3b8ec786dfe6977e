"""transformers' Llama taken apart for :mod:`kvevict.engine`."""

from __future__ import annotations

from functools import partial

import torch
from transformers import LlamaForCausalLM

from ...errors import InputError
from ...tensors import Tensor
from ..common import Rotations


class TorchDecoder:
    """A ``LlamaForCausalLM`` of transformers as a :class:`kvevict.engine.session.Decoder`."""

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
        """See :class:`Decoder`; ids on the device are ``[sequences, tokens]``."""
        if not isinstance(ids, torch.Tensor):
            ids = torch.tensor([ids], device=self.model.device)
        return self.model.model.embed_tokens(ids)

    @torch.no_grad()
    def project(
        self, layer: int, hidden: Tensor, start: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Decoder`; ``start`` may be int64 ``[1]`` on the device."""
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
    def finish_layer(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        block = self.model.model.layers[layer]
        hidden = hidden + block.self_attn.o_proj(mixed)
        return hidden + block.mlp(block.post_attention_layernorm(hidden))

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        logits = self.model.lm_head(self.model.model.norm(hidden[:, -1:]))[:, 0].float()
        return logits[0] if len(logits) == 1 else logits

    @torch.no_grad()
    def output_projection(self, layer: int) -> Tensor:
        """See :class:`Decoder`."""
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
