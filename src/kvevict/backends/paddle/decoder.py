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
from ...rotary import Tables
from ...tensors import Tensor, integers
from ..common import Rotations
from ..products import Products
from .arithmetic import PLAIN, Arithmetic, choose, swapped
from .build import ExactRotary
from .products import OWN, PRODUCTS, mlp

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
        heads = self.query_heads, self.kv_heads
        self._arithmetic = choose(model.parameters(), config.hidden_size, heads, self.head_dim)
        make = partial(_tables, self._rotary, self._arithmetic)
        self._rotations = Rotations(self.layers, make)
        there = PRODUCTS if _plain(model) else (OWN,)
        self._products = Products(there, self._layer(0), "float32", paddle.to_tensor, products)

    @property
    @paddle.no_grad()
    def products(self) -> dict[str, str]:
        """What multiplies by the weights, for a token, a batch and a prompt."""
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
        return *self._arithmetic.rotate(q, k, rope), v

    @paddle.no_grad()
    def unturned(
        self, layer: int, hidden: Tensor, start: Start
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        block = self._layer(layer)
        attention, tokens = block.self_attn, hidden.shape[1]
        x = self._arithmetic.norm(block.input_layernorm, hidden)
        linear = self._products(hidden).linear
        q, k, v = (
            linear(projection, x).reshape([len(hidden), tokens, -1, self.head_dim])
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return swapped(q), swapped(k), swapped(v), self._rotations(layer, start, x)

    @paddle.no_grad()
    def rotary(self, layer: int, start: int, tokens: int) -> Tables:
        like = self._layer(layer).self_attn.o_proj.weight
        tables = _tables(self._rotary, PLAIN, start, tokens, like)
        return tuple(x.astype("float32") for x in tables)

    def reach(self, tokens: int) -> int:
        if isinstance(self._rotary, ExactRotary):
            return self._rotary.tables(tokens)[0].shape[1]
        return self.max_positions

    @paddle.no_grad()
    def finish_layer(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        block, product = self._layer(layer), self._products(hidden)
        mixed = product.linear(block.self_attn.o_proj, mixed)
        hidden, x = self._arithmetic.add_norm(block.post_attention_layernorm, hidden, mixed)
        if product is OWN:
            return hidden + mlp(block.mlp, x, self._arithmetic.gate)
        return hidden + product.mlp(block.mlp, x)

    @paddle.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        last = self._arithmetic.norm(self.model.base_model.norm, hidden[:, -1:])
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
    rotary: paddle.nn.Layer, arithmetic: Arithmetic, start: Start, tokens: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines in the type of ``like``, as the arithmetic wants them."""
    # Calling PaddleNLP's would convert the tables of all positions before these, too.
    whole = rotary.cos_cached, rotary.sin_cached
    if isinstance(rotary, ExactRotary) and not isinstance(start, paddle.Tensor):
        whole = rotary.tables((start if isinstance(start, int) else max(start)) + tokens)
    tables = (table.reshape([-1, table.shape[-1]]) for table in whole)
    if isinstance(start, int):
        rows = (table[start : start + tokens] for table in tables)
    else:
        at = _positions(start, tokens, like)
        rows = (table.index_select(at).reshape([len(start), tokens, -1]) for table in tables)
    return arithmetic.tables(*(own.astype(like.dtype) for own in rows))


def _positions(start: tuple | Tensor, tokens: int, like: Tensor) -> Tensor:
    """Those of ``tokens`` from each start on, one sequence after another: int64."""
    if isinstance(start, tuple):
        start = integers([*start], paddle.int64, like=like)
    if tokens == 1:
        return start
    return (start.unsqueeze(-1) + paddle.arange(tokens, dtype="int64")).reshape([-1])
