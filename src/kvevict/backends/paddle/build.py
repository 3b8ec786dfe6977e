"""A checkpoint as PaddleNLP's ``LlamaForCausalLM``."""

from __future__ import annotations

import numpy as np
import paddle
from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM
from paddlenlp.transformers.model_utils import no_init_weights

from kvevict.errors import InputError
from kvevict.models.checkpoint import Checkpoint, is_linear, llama_settings, read_weights
from kvevict.models.rope import inverse_frequencies, rotary_tables


class RotaryTable(paddle.nn.Layer):
    """Stands in for PaddleNLP's `LlamaRotaryEmbedding`, one for all layers.

    Same call, same attributes, tables of shape `[1, positions, 1, head_dim]`. A longer sequence is
    an `InputError`, where PaddleNLP's slice would quietly return fewer rows than were asked for.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.inv_freq = paddle.to_tensor(inverse_frequencies(config).astype("float32"))
        self.cos_cached, self.sin_cached = (
            paddle.to_tensor(table[None, :, None, :]) for table in rotary_tables(config)
        )

    def forward(self, x: paddle.Tensor, seq_len: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Tables for positions 0 … `seq_len` - 1 in the type of `x`."""
        if seq_len > self.cos_cached.shape[1]:
            raise InputError(
                f"a sequence of {seq_len} tokens is longer than the model's "
                f"{self.cos_cached.shape[1]} positions"
            )
        cos, sin = self.cos_cached[:, :seq_len], self.sin_cached[:, :seq_len]
        return cos.astype(x.dtype), sin.astype(x.dtype)


def build(checkpoint: Checkpoint, dtype: str, device: str) -> LlamaForCausalLM:
    """The model in eval mode on `device`, Paddle's current one, with weights of type `dtype`.

    Raises `InputError` when a tensor is missing, unknown or of another shape.
    """
    rotary = RotaryTable(checkpoint.config)
    model = _empty_model(checkpoint, dtype)
    for layer in model.llama.layers:
        layer.self_attn.rotary_emb = rotary
    parameters = {
        "model." + name[len("llama.") :] if name.startswith("llama.") else name: parameter
        for name, parameter in model.named_parameters()
    }
    shapes = {n: p.shape[::-1] if is_linear(n) else p.shape for n, p in parameters.items()}
    for name, weight in read_weights(checkpoint, shapes):
        # One name for all three, so that each copy lets go of the one before.
        weight = np.ascontiguousarray(weight.T if is_linear(name) else weight)
        weight = paddle.to_tensor(weight, dtype=dtype)
        parameters[name].set_value(weight)
    model.eval()
    return model


def _empty_model(checkpoint: Checkpoint, dtype: str) -> LlamaForCausalLM:
    config = checkpoint.config
    llama = LlamaConfig(
        **llama_settings(checkpoint),
        # One position: PaddleNLP would fill a table per layer only to have it replaced.
        max_position_embeddings=1,
        rope_theta=config.get("rope_theta") or 10000.0,
        dtype=dtype,
    )
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        with no_init_weights(_enable=True), paddle.LazyGuard():
            model = LlamaForCausalLM(llama)
    finally:
        paddle.set_default_dtype(before)
    llama.max_position_embeddings = llama.seq_length = config["max_position_embeddings"]
    llama.rope_scaling = config.get("rope_scaling")
    return model
