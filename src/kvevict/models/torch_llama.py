"""A checkpoint as the `LlamaForCausalLM` of Hugging Face's transformers, on PyTorch."""

from __future__ import annotations

import os

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvevict.errors import InputError
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


def use_device(device: str | None) -> torch.device:
    """Find and make current what `device` names: "cpu", "gpu" or "gpu:1".

    "gpu", and the default where there is one, is the GPU of this process under torchrun.
    """
    if device is None:
        device = "gpu" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    number = int(device.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise InputError(
            f"PyTorch cannot use device {device!r}: it finds {torch.cuda.device_count()} GPUs"
        )
    found = torch.device("cuda", number)
    torch.cuda.set_device(found)  # kernels launch on the current one
    return found


def device_name(device: torch.device) -> str:
    """ "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def choose_dtype(wanted: str | None, device: torch.device) -> str:
    """By default float32 on the CPU; on a GPU bfloat16 where it has that, else float16."""
    if wanted or device.type == "cpu":
        return wanted or "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


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
