"""A Llama with random weights, made where it runs: what is measured does not depend on them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from kvevict.backends.torch.joined import lay_out

GIB = 2**30
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = {  # for a trial on a CPU
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def random_llama(
    layers: int, shape: dict[str, int] = LLAMA_8B, device: str = "cuda"
) -> LlamaForCausalLM:
    """Llama-3.1-8B's shape in bfloat16, or another."""
    config = LlamaConfig(
        **shape,
        num_hidden_layers=layers,
        max_position_embeddings=1 << 23,
        rope_theta=500000.0,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).eval()
    base = model.base_model
    lay_out(model, torch.bfloat16, torch.device(device))  # as a loaded model's are
    base.rotary_emb = type(base.rotary_emb)(config, device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in [*model.named_parameters()]:
            if parameter.is_meta:
                module, _, attribute = name.rpartition(".")
                empty = torch.empty_like(parameter, device=device)
                parameter = torch.nn.Parameter(empty, False)
                setattr(model.get_submodule(module), attribute, parameter)
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model
