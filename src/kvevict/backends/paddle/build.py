"""A checkpoint as a model of PaddleNLP."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddlenlp import transformers
from paddlenlp.transformers.model_utils import no_init_weights

from kvevict.errors import InputError
from kvevict.models.checkpoint import Checkpoint, is_linear
from kvevict.models.rope import inverse_frequencies, rotary_tables
from kvevict.models.weights import LazyTensor


class ExactRotary(paddle.nn.Layer):
    """Stands in for PaddleNLP's rotary embedding, one for all layers: same call, same attributes.

    The tables, float32 ``[1, rows, 1, head_dim]``, have as many rows as the longest sequence so far
    needed, rounded up to a power of two. One that is longer than the model has positions for is an
    `InputError`, where PaddleNLP would go on in silence.

    Args:
        config: Hugging Face's keys.
        positions: that the model has.
        flat: ``forward`` returns ``[rows, head_dim]``, as Mistral wants it.
    """

    def __init__(self, config: dict[str, Any], positions: int, flat: bool = False) -> None:
        super().__init__()
        self.inv_freq = paddle.to_tensor(inverse_frequencies(config).astype("float32"))
        self.config, self.positions, self.flat = config, positions, flat
        self._grow(1)

    def forward(self, x: paddle.Tensor, seq_len: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Tables for positions 0 … ``seq_len`` - 1 in the type of ``x``."""
        tables = (table[:, :seq_len].astype(x.dtype) for table in self.tables(seq_len))
        return tuple(table.squeeze([0, 2]) if self.flat else table for table in tables)

    def tables(self, rows: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Cosines and sines of at least so many positions."""
        if rows > self.positions:
            raise InputError(
                f"a sequence of {rows} tokens is longer than the model's {self.positions} positions"
            )
        if rows > self.cos_cached.shape[1]:
            self._grow(min(1 << (rows - 1).bit_length(), self.positions))
        return self.cos_cached, self.sin_cached

    def _grow(self, rows: int) -> None:
        self.cos_cached, self.sin_cached = (
            paddle.to_tensor(table[None, :, None, :]) for table in rotary_tables(self.config, rows)
        )


def build(checkpoint: Checkpoint, dtype: str, device: str) -> transformers.PretrainedModel:
    """The model in eval mode on ``device``, Paddle's current one, with weights of ``dtype``."""
    if dtype == "float32" and device.startswith("gpu"):
        # Paddle may round to TF32, to 11 bits, what it multiplies; PyTorch does not, unless told.
        paddle.base.core.set_cublas_switch(False)
    model = _empty_model(checkpoint, dtype)
    prefix = f"{checkpoint.family.model_type}."
    for parameter_name, parameter in model.named_parameters():
        name = parameter_name.replace(prefix, "model.", 1)
        # PaddleNLP's Mistral has an output matrix even where it is the embedding.
        tied = name == "lm_head.weight" and name not in checkpoint.shapes
        tensor = checkpoint.tensors["model.embed_tokens.weight" if tied else name]
        parameter.set_value(_weight(tensor, dtype, transposed=is_linear(name)))
    model.eval()
    return model


def _weight(tensor: LazyTensor, dtype: str, transposed: bool) -> paddle.Tensor:
    """One tensor of a file on the current device, which does what there is to do to it.

    The host reads it and no more: of several processes, each holds one tensor's bytes at a time.
    """
    # Paddle takes an array of uint16 for the bits of bfloat16.
    weight = paddle.to_tensor(
        tensor.bfloat16() if tensor.bfloat16 else np.ascontiguousarray(tensor())
    )
    weight = weight.astype(dtype)
    return weight.t().contiguous() if transposed else weight


def _empty_model(checkpoint: Checkpoint, dtype: str) -> transformers.PretrainedModel:
    architecture, config = checkpoint.family.architecture, checkpoint.config
    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    settings = config_class(
        # One position: PaddleNLP would fill a table per layer only to have it replaced.
        **{**checkpoint.settings, "max_position_embeddings": 1},
        rope_theta=config["rope_theta"],
        dtype=dtype,
    )
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        with no_init_weights(_enable=True), paddle.LazyGuard():
            model = getattr(transformers, architecture)(settings)
    finally:
        paddle.set_default_dtype(before)
    settings.max_position_embeddings = settings.seq_length = checkpoint.max_positions
    settings.rope_scaling = config["rope_scaling"]
    base = model.base_model
    flat = base.layers[0].self_attn.rotary_emb.cos_cached.ndim == 2
    rotary = ExactRotary(config, checkpoint.max_positions, flat)
    for layer in base.layers:
        layer.self_attn.rotary_emb = rotary
    base.embed_tokens.padding_idx = None  # Mistral's would embed padding as nought
    return model
