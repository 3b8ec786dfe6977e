"""A checkpoint as a model of Hugging Face's transformers, on PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from kvevict.models.checkpoint import Checkpoint
from kvevict.models.rope import attention_scale, inverse_frequencies, rope_kind

from .joined import lay_out


class ExactRotary(torch.nn.Module):
    """Stands in for a model's rotary embedding: same call, angles in float64 (see ``rope``).

    They are computed for the positions asked for, which may lie on the device: nothing is held for
    positions that no sequence reaches.
    """

    def __init__(self, config: dict[str, Any], device: torch.device) -> None:
        super().__init__()
        # No buffer: a model that is told to be of another type must leave these as they are.
        self.frequencies = torch.from_numpy(inverse_frequencies(config)).to(device)
        self.scale = attention_scale(config)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines at ``position_ids``, ``[batch, tokens, head_dim]``, in ``x``'s type."""
        angles = position_ids.unsqueeze(-1) * self.frequencies.to(position_ids.device)
        cos, sin = ((table * self.scale).to(x.dtype) for table in (angles.cos(), angles.sin()))
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)


def build(checkpoint: Checkpoint, dtype: str, device: torch.device) -> transformers.PreTrainedModel:
    """The model in eval mode on ``device``, with weights of type ``dtype``."""
    model = _empty_model(checkpoint, dtype)
    model.base_model.rotary_emb = ExactRotary(checkpoint.config, device)
    if device.type == "cuda":
        lay_out(model, getattr(torch, dtype), device)
    for name in checkpoint.shapes:  # one after the other, so that only one is held
        module, _, attribute = name.rpartition(".")
        tensor = checkpoint.tensors[name]
        if tensor.bfloat16:
            weight = torch.from_numpy(tensor.bfloat16()).view(torch.bfloat16).to(device)
        else:
            weight = torch.from_numpy(np.ascontiguousarray(tensor())).to(device)
        weight, held = weight.to(getattr(torch, dtype)), model.get_parameter(name)
        if held.is_meta:
            setattr(model.get_submodule(module), attribute, torch.nn.Parameter(weight, False))
        else:
            held.copy_(weight)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.base_model.embed_tokens.weight
    return model.eval()


def _empty_model(checkpoint: Checkpoint, dtype: str) -> transformers.PreTrainedModel:
    architecture, config = checkpoint.family.architecture, checkpoint.config
    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    rope = {"rope_type": rope_kind(config), "rope_theta": config["rope_theta"]}
    settings = config_class(
        **checkpoint.settings,
        # Its own frequencies are replaced, and "factors" it would not know.
        rope_parameters={**rope, "rope_type": "default"},
        dtype=dtype,
    )
    with torch.device("meta"):
        model = getattr(transformers, architecture)(settings)
    settings.rope_parameters = {**(config["rope_scaling"] or {}), **rope}
    return model
