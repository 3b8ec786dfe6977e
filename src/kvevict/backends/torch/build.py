"""A checkpoint as the `LlamaForCausalLM` of Hugging Face's transformers, on PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvevict.models.checkpoint import Checkpoint, llama_settings, read_weights
from kvevict.models.rope import rotary_tables


class RotaryTable(torch.nn.Module):
    """Stands in for transformers' `LlamaRotaryEmbedding`: same call, angles exact (see `rope`)."""

    def __init__(self, config: dict, device: torch.device) -> None:
        super().__init__()
        cos, sin = (torch.from_numpy(table).to(device) for table in rotary_tables(config))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines at `position_ids`, `[batch, tokens, head_dim]`, in the type of `x`."""
        return self.cos[position_ids].to(x.dtype), self.sin[position_ids].to(x.dtype)


def build(checkpoint: Checkpoint, dtype: str, device: torch.device) -> LlamaForCausalLM:
    """The model in eval mode on `device`, with weights of type `dtype`.

    Raises `InputError` when a tensor is missing, unknown or of another shape.
    """
    rotary = RotaryTable(checkpoint.config, device)
    model = _empty_model(checkpoint, dtype)
    model.model.rotary_emb = rotary
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, array in read_weights(checkpoint, shapes):
        module, _, attribute = name.rpartition(".")
        weight = torch.from_numpy(np.ascontiguousarray(array)).to(device, getattr(torch, dtype))
        setattr(model.get_submodule(module), attribute, torch.nn.Parameter(weight, False))
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def _empty_model(checkpoint: Checkpoint, dtype: str) -> LlamaForCausalLM:
    config = checkpoint.config
    llama = LlamaConfig(
        **llama_settings(checkpoint),
        max_position_embeddings=config["max_position_embeddings"],
        # Its own frequencies are replaced, and "factors" it would not know.
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        dtype=dtype,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(llama)
    scaling = dict(config.get("rope_scaling") or {})
    kind = scaling.pop("type", "default")
    llama.rope_parameters = {
        "rope_type": kind,
        "rope_theta": config.get("rope_theta") or 10000.0,
        **scaling,
    }
    return model
