"""A model of PaddleNLP taken apart for :mod:`kvevict.engine`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import paddle
from paddlenlp.transformers import PretrainedModel

from ...engine.session import Decoder, Start
from ...errors import InputError
from ...models.config import max_positions
from ...models.families import by_class, unknown_class
from ...ops import kernels
from ...rotary import Tables
from ...tensors import Tensor, integers
from ..common import Rotations
from ..products import Products
from .build import ExactRotary
from .products import OWN, PRODUCTS

# What PaddleNLP's own modules can do beside the arithmetic here, and how it is turned off.
_PLAIN = {
    "fuse_attention_qkv": False,
    "fuse_attention_ffn": False,
    "alibi": False,
    "use_long_sequence_strategies": False,
    "hidden_act": "silu",
}


class PaddleDecoder(Decoder):
    """A causal model of PaddleNLP as a :class:`kvevict.engine.session.Decoder`.

    Args:
        products: as in :meth:`kvevict.backends.LoadedModel.decoder`.

    Raises:
        InputError: a class that is of no family, or settings that change its arithmetic.
    """

    def __init__(self, model: PretrainedModel, products: Mapping[str, str] | None = None) -> None:
        if by_class(type(model), "paddlenlp") is None:
            raise unknown_class(type(model))
        config = model.config
        for name, value in _PLAIN.items():
            if getattr(config, name, value) != value:
                raise InputError(f"load the model with {name}={value!r}")
        self.model = model
        self.layers = config.num_hidden_layers
        self.kv_heads = config.num_key_value_heads
        self.query_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        # PaddleNLP's own tables know no YaRN, and reach no farther for it.
        self.max_positions = max_positions({**config.to_dict(), "rope_scaling": None})
        self._rotary = self._layer(0).self_attn.rotary_emb
        self._rotations = Rotations(self.layers, partial(_tables, self._rotary))
        there = PRODUCTS if _plain(model) else (OWN,)
        self._products = Products(there, self._layer(0), "float32", paddle.to_tensor, products)

    @property
    @paddle.no_grad()
    def products(self) -> dict[str, str]:
        """See :class:`Decoder`."""
        return {size: product.name for size, product in self._products.chosen.items()}

    def _layer(self, layer: int) -> paddle.nn.Layer:
        return self.model.base_model.layers[layer]

    @paddle.no_grad()
    def embed(self, ids: list[int] | Tensor) -> Tensor:
        if not isinstance(ids, paddle.Tensor):
            ids = paddle.to_tensor([ids], dtype="int64")
        return self.model.base_model.embed_tokens(ids)

    @paddle.no_grad()
    def project(self, layer: int, hidden: Tensor, start: Start) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, rope = self.unturned(layer, hidden, start)
        return _rotate(q, *rope), _rotate(k, *rope), v

    @paddle.no_grad()
    def unturned(
        self, layer: int, hidden: Tensor, start: Start
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        block = self._layer(layer)
        attention, tokens = block.self_attn, hidden.shape[1]
        x, linear = rms_norm(block.input_layernorm, hidden), self._products(hidden).linear
        q, k, v = (
            linear(projection, x).reshape([len(hidden), tokens, -1, self.head_dim])
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        rope = self._rotations(layer, start, x)
        return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), rope

    @paddle.no_grad()
    def rotary(self, layer: int, start: int, tokens: int) -> Tables:
        like = self._layer(layer).self_attn.o_proj.weight
        return tuple(x.astype("float32") for x in _tables(self._rotary, start, tokens, like))

    @paddle.no_grad()
    def finish_layer(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        block, product = self._layer(layer), self._products(hidden)
        norm, mlp = block.post_attention_layernorm, block.mlp
        mixed = product.linear(block.self_attn.o_proj, mixed)
        if gpu := kernels(hidden):
            hidden, x = gpu.add_rms_norm(hidden, mixed, norm.weight, norm.variance_epsilon)
            return hidden + mlp.down_proj(gpu.gated(mlp.gate_proj(x), mlp.up_proj(x)))
        hidden = hidden + mixed
        return hidden + product.mlp(mlp, rms_norm(norm, hidden))

    @paddle.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        last = rms_norm(self.model.base_model.norm, hidden[:, -1:])
        logits = self.model.lm_head(last).squeeze(1).astype("float32")
        return logits if len(logits) > 1 else logits.squeeze(0)

    @paddle.no_grad()
    def output_projection(self, layer: int) -> Tensor:
        weight = self._layer(layer).self_attn.o_proj.weight.detach()
        return weight.reshape([self.kv_heads, -1, self.head_dim, weight.shape[-1]])


def _plain(model: PretrainedModel) -> bool:
    """Whether others may do on a CPU what the model's linear layers would do there."""
    parts = model.base_model.layers.sublayers()
    plain = [part.weight for part in parts if type(part) is paddle.nn.Linear]
    weights = [weight for weight in model.base_model.layers.parameters() if weight.ndim == 2]
    return len(plain) == len(weights) and all(
        weight.place.is_cpu_place() and weight.dtype == paddle.float32 for weight in weights
    )


def _tables(
    rotary: paddle.nn.Layer, start: int | tuple, tokens: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines ``[tokens, head_dim]``, or ``[batch, 1, tokens, head_dim]``."""
    # Calling it would convert the tables of all positions before these, too.
    whole = rotary.cos_cached, rotary.sin_cached
    if isinstance(rotary, ExactRotary):
        whole = rotary.tables((start if isinstance(start, int) else max(start)) + tokens)
    cos, sin = (
        _rows(table.reshape([-1, table.shape[-1]]), start, tokens).astype(like.dtype)
        for table in whole
    )
    first, second = sin.chunk(2, dim=-1)
    return cos, paddle.concat([-first, second], axis=-1)


def _rows(table: Tensor, start: int | tuple, tokens: int) -> Tensor:
    """``tokens`` rows of ``[positions, head_dim]`` from ``start`` on, of each sequence's own."""
    if isinstance(start, int):
        return table[start : start + tokens]
    every = [first + token for first in start for token in range(tokens)]
    rows = integers(every, paddle.int64, like=table)
    return table.index_select(rows).reshape([len(start), 1, tokens, -1])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on ``[batch, heads, tokens, head_dim]``: halves trade places, the sines have the sign.

    Contiguous heads and tables that broadcast from the left take Paddle's fast path on a CPU, five
    times as fast as PaddleNLP's own.
    """
    if gpu := kernels(x):
        return gpu.turn(x, cos, sin)
    x = x.contiguous()
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def rms_norm(norm: paddle.nn.Layer, x: Tensor) -> Tensor:
    """PaddleNLP's norm squares with ``pow``, ten times as slow on a CPU as a product."""
    if gpu := kernels(x):
        return gpu.rms_norm(x, norm.weight, norm.variance_epsilon)
    wide = x.astype("float32")
    wide = wide * paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + norm.variance_epsilon)
    return wide.astype(norm.weight.dtype) * norm.weight
