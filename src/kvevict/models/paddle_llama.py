"""A checkpoint as PaddleNLP's `LlamaForCausalLM`; needs `runtime.configure` to have run."""

from __future__ import annotations

import numpy as np
import paddle

from kvevict.errors import InputError
from kvevict.models.checkpoint import Checkpoint, is_linear
from kvevict.models.rope import inverse_frequencies
from kvevict.runtime import quiet

with quiet():
    from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM
    from paddlenlp.transformers.model_utils import no_init_weights


class RotaryTable(paddle.nn.Layer):
    """Cosines and sines of all positions, computed in float64 and kept in float32.

    Stands in for PaddleNLP's `LlamaRotaryEmbedding` (same call, same attributes, tables of shape
    `[1, positions, 1, head_dim]`). One instance serves all layers. A longer sequence is an
    `InputError`, where PaddleNLP's slice would quietly return fewer rows than were asked for.
    """

    def __init__(self, frequencies: np.ndarray, positions: int) -> None:
        super().__init__()
        angles = np.outer(np.arange(positions, dtype=np.float64), frequencies)
        self.inv_freq = paddle.to_tensor(frequencies.astype("float32"))
        self.cos_cached = _table(np.cos(angles))
        self.sin_cached = _table(np.sin(angles))

    def forward(self, x: paddle.Tensor, seq_len: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Tables for positions 0 … `seq_len` - 1 in the type of `x`."""
        if seq_len > self.cos_cached.shape[1]:
            raise InputError(
                f"a sequence of {seq_len} tokens is longer than the model's "
                f"{self.cos_cached.shape[1]} positions"
            )
        cos, sin = self.cos_cached[:, :seq_len], self.sin_cached[:, :seq_len]
        return cos.astype(x.dtype), sin.astype(x.dtype)


def _table(half: np.ndarray) -> paddle.Tensor:
    half = half.astype("float32")
    return paddle.to_tensor(np.concatenate([half, half], axis=-1)[None, :, None, :])


def build(checkpoint: Checkpoint, dtype: str) -> LlamaForCausalLM:
    """The model in eval mode on Paddle's current device, with weights of type `dtype`.

    Raises `InputError` when a tensor is missing, unknown or of another shape.
    """
    config = checkpoint.config
    rotary = RotaryTable(inverse_frequencies(config), config["max_position_embeddings"])
    model = _empty_model(checkpoint, dtype)
    for layer in model.llama.layers:
        layer.self_attn.rotary_emb = rotary
    tensors = dict(checkpoint.tensors)
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    for name, parameter in model.named_parameters():
        hf_name = "model." + name[len("llama.") :] if name.startswith("llama.") else name
        read = tensors.pop(hf_name, None)
        if read is None:
            raise InputError(f"{checkpoint.source} lacks the tensor {hf_name}")
        array = read()
        array = array.T if is_linear(hf_name) else array
        if list(array.shape) != list(parameter.shape):
            raise InputError(
                f"{checkpoint.source}: the tensor {hf_name} has {array.size} values of shape "
                f"{list(array.shape)} where the configuration asks for {list(parameter.shape)}"
            )
        parameter.set_value(paddle.to_tensor(np.ascontiguousarray(array), dtype=dtype))
    unknown = [name for name in tensors if not name.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise InputError(f"{checkpoint.source} has a tensor that Llama does not: {unknown[0]}")
    model.eval()
    return model


def _empty_model(checkpoint: Checkpoint, dtype: str) -> LlamaForCausalLM:
    config = checkpoint.config
    eos = list(checkpoint.eos_ids)
    llama = LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        # One position: PaddleNLP would fill a table per layer only to have it replaced.
        max_position_embeddings=1,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=config.get("rope_theta") or 10000.0,
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
        bos_token_id=config.get("bos_token_id"),
        eos_token_id=eos[0] if len(eos) == 1 else eos or None,
        pad_token_id=config.get("pad_token_id"),
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
