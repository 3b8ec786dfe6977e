"""Hugging Face Llama on PyTorch: the same library over another framework (optional)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM

from ..errors import InputError
from ..tensors import Tensor


class TransformersDecoder:
    """A ``LlamaForCausalLM`` of transformers as a :class:`kvevict.session.Decoder`."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        config = model.config
        rope = getattr(model.model.rotary_emb, "rope_type", "default")
        if rope in ("dynamic", "longrope"):
            raise InputError(f"RoPE of type {rope!r} turns older keys again as a sequence grows")
        self.model = model
        self.layers = config.num_hidden_layers
        self.kv_heads = config.num_key_value_heads
        self.head_dim = model.model.layers[0].self_attn.head_dim
        self.max_positions = config.max_position_embeddings
        self._rotated: tuple[Any, Any] = (None, None)

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
        # On the device the same tensor may since have become another position.
        if layer == 0 or self._rotated[0] != (start, hidden.shape[1]):
            self._rotated = ((start, hidden.shape[1]), self._rotation(start, hidden))
        cos, sin = self._rotated[1]
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

    def _rotation(self, start: int | Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[1, tokens, head_dim]``."""
        positions = torch.arange(hidden.shape[1], device=hidden.device) + start
        return self.model.model.rotary_emb(hidden, positions.unsqueeze(0))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on ``[sequences, heads, tokens, head_dim]``, halves rotated as in transformers."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)
