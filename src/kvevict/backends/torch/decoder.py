"""A model of transformers taken apart for :mod:`kvevict.engine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType

import numpy as np
import torch
from transformers import PreTrainedModel

from ...engine.session import Decoder, Start
from ...errors import InputError
from ...models.config import max_positions
from ...models.families import by_class, unknown_class
from ...ops import kernels, row_kernels
from ...rotary import Tables
from ...tensors import Tensor
from ..common import Rotations
from ..products import Products
from .joined import sizes, whole
from .products import OWN, PRODUCTS


class TorchDecoder(Decoder):
    """A causal model of transformers as a :class:`kvevict.engine.session.Decoder`.

    Args:
        products: as in :meth:`kvevict.backends.LoadedModel.decoder`.

    Raises:
        InputError: a class that is of no family, RoPE that turns older keys again, or parts on
            several devices.
    """

    def __init__(self, model: PreTrainedModel, products: Mapping[str, str] | None = None) -> None:
        family = by_class(type(model), "transformers")
        if family is None:
            raise unknown_class(type(model))
        rotary, config = model.base_model.rotary_emb, model.config
        rope = getattr(rotary, "rope_type", "default")
        if rope in ("dynamic", "longrope"):
            raise InputError(f"RoPE of type {rope!r} turns older keys again as a sequence grows")
        if len({parameter.device for parameter in model.parameters()}) > 1:
            raise InputError("load the model onto one device")
        self.model = model
        self.layers = config.num_hidden_layers
        self.kv_heads = config.num_key_value_heads
        self.head_dim = self._layer(0).self_attn.head_dim
        scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        self.max_positions = max_positions({**config.to_dict(), "rope_scaling": scaling})
        self._qk_norm, self._nope = family.qk_norm, family.nope
        self._rotary = rotary
        self._silu = config.hidden_act == "silu"
        self._rotations = Rotations(self.layers, partial(_tables, rotary))
        there = PRODUCTS if _plain(model) else (OWN,)
        dtype = str(model.dtype).rpartition(".")[-1]
        self._products = Products(there, self._layer(0), dtype, self._tensor, products)

    @property
    @torch.no_grad()
    def products(self) -> dict[str, str]:
        """What multiplies by the weights, for a token, a batch and a prompt."""
        return {size: product.name for size, product in self._products.chosen.items()}

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(self.model.dtype)

    def _layer(self, layer: int) -> torch.nn.Module:
        return self.model.base_model.layers[layer]

    @torch.no_grad()
    def embed(self, ids: list[int] | Tensor) -> Tensor:
        """Ids on the device are ``[sequences, tokens]``."""
        if not isinstance(ids, torch.Tensor):
            ids = torch.tensor([ids], device=self.model.device)
        return self.model.base_model.embed_tokens(ids)

    @torch.no_grad()
    def project(self, layer: int, hidden: Tensor, start: Start) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, rope = self.unturned(layer, hidden, start)
        return (_rotate(q, *rope), _rotate(k, *rope), v) if rope else (q, k, v)

    @torch.no_grad()
    def unturned(
        self, layer: int, hidden: Tensor, start: Start
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        block = self._layer(layer)
        attention = block.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (
            own.view(*hidden.shape[:2], -1, self.head_dim)
            for own in self._normed(block.input_layernorm, projections, hidden)
        )
        if self._qk_norm:
            q, k = _rms_norm(attention.q_norm, q), _rms_norm(attention.k_norm, k)
        rope = self._rotations(layer, start, hidden)
        turns = not self._nope or attention.use_rope
        return *(heads.transpose(1, 2) for heads in (q, k, v)), rope if turns else None

    def _normed(
        self, norm: torch.nn.Module, linears: Sequence[torch.nn.Linear], hidden: Tensor
    ) -> Sequence[Tensor]:
        """``linear(norm(hidden))`` of each."""
        if (gpu := row_kernels(hidden)) and (joint := _joint(linears, hidden)):
            return gpu.linear(hidden, *joint, _norm_of(gpu, norm)).split(sizes(linears), dim=-1)
        product, x = self._products(hidden), _rms_norm(norm, hidden)
        return product.linears(linears, x) if len(linears) > 1 else [product.linear(linears[0], x)]

    @torch.no_grad()
    def rotary(self, layer: int, start: int, tokens: int) -> Tables:
        attention = self._layer(layer).self_attn
        if self._nope and not attention.use_rope:
            return None
        like = attention.o_proj.weight
        cos, sin = (x[0].float() for x in _tables(self._rotary, start, tokens, like))
        first, second = sin.chunk(2, dim=-1)
        return cos, torch.cat([-first, second], dim=-1)

    @torch.no_grad()
    def finish_layer(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        block, product = self._layer(layer), self._products(hidden)
        norm, mlp = block.post_attention_layernorm, block.mlp
        if (gpu := row_kernels(hidden)) and self._silu:
            weights = [
                _joint(own, hidden)
                for own in ([block.self_attn.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj])
            ]
            if all(weights) and weights[1][1] is None:
                o, (gate_and_up, _), down = weights
                hidden = gpu.linear(mixed, *o, added=hidden)
                gated = gpu.gated_linear(hidden, gate_and_up, _norm_of(gpu, norm))
                return gpu.linear(gated, *down, added=hidden)
        mixed = product.linear(block.self_attn.o_proj, mixed)
        if (gpu := kernels(hidden)) and self._silu:
            hidden, x = gpu.add_rms_norm(hidden, mixed, norm.weight, norm.variance_epsilon)
            gated = gpu.gated(*product.linears((mlp.gate_proj, mlp.up_proj), x))
            return _add_product(hidden, gated, mlp.down_proj)
        hidden = hidden + mixed
        return hidden + product.mlp(mlp, norm(hidden))

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        norm, head = self.model.base_model.norm, self.model.lm_head
        (logits,) = self._normed(norm, [head], hidden[:, -1:])
        logits = logits[:, 0].float()
        return logits[0] if len(logits) == 1 else logits

    @torch.no_grad()
    def output_projection(self, layer: int) -> Tensor:
        weight = self._layer(layer).self_attn.o_proj.weight.detach().t()
        return weight.view(self.kv_heads, -1, self.head_dim, weight.shape[-1])


def _plain(model: PreTrainedModel) -> bool:
    """Whether others may do on a CPU what the model's linear layers and SiLU would do there."""
    parts = model.base_model.layers.modules()
    plain = [part.weight for part in parts if type(part) is torch.nn.Linear]
    weights = [weight for weight in model.base_model.layers.parameters() if weight.ndim == 2]
    fits = model.config.hidden_act == "silu" and len(plain) == len(weights)
    return fits and all(w.device.type == "cpu" and w.dtype == model.dtype for w in weights)


def _tables(
    rotary: torch.nn.Module, start: Start, tokens: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[1 or batch, tokens, head_dim]``."""
    if isinstance(start, tuple):
        start = torch.tensor(start, device=like.device)
    first = start.unsqueeze(-1) if isinstance(start, torch.Tensor) else start
    positions = first + torch.arange(tokens, device=like.device)
    return rotary(like, positions.reshape(-1, tokens))


def _rms_norm(norm: torch.nn.Module, x: Tensor) -> Tensor:
    gpu = kernels(x)
    return gpu.rms_norm(x, norm.weight, norm.variance_epsilon) if gpu else norm(x)


def _joint(linears: Sequence[torch.nn.Linear], x: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of plain layers in ``x``'s type, side by side; None of others."""
    if any(type(own) is not torch.nn.Linear or own.weight.dtype != x.dtype for own in linears):
        return None
    return whole(linears)


def _norm_of(gpu: ModuleType, norm: torch.nn.Module) -> tuple:
    return gpu.Norm(norm.weight, norm.variance_epsilon)


def _add_product(hidden: Tensor, x: Tensor, linear: torch.nn.Linear) -> Tensor:
    """``hidden + linear(x)``, written to ``hidden`` by the product itself where it can."""
    if linear.bias is not None:
        return hidden + linear(x)
    hidden.view(-1, hidden.shape[-1]).addmm_(x.view(-1, x.shape[-1]), linear.weight.t())
    return hidden


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on ``[sequences, heads, tokens, head_dim]``, halves rotated as in transformers."""
    if gpu := kernels(x):
        return gpu.turn(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(1)
