"""Linear layers of one input whose weights lie side by side: one product does for all of them.

A decoded token's products are read from memory, and a small one takes longer than its bytes: those
of keys and values are an eighth of a gate's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import Linear, Parameter

from ...tensors import Tensor


def lay_out(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Make room for such weights: parameters without values yet, each a part of one tensor."""
    for layer in model.base_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _join([attention.q_proj, attention.k_proj, attention.v_proj], dtype, device)
        _join([mlp.gate_proj, mlp.up_proj], dtype, device)


def _join(linears: Sequence[Linear], dtype: torch.dtype, device: torch.device) -> None:
    for name in ("weight", "bias"):
        parts = [getattr(linear, name) for linear in linears]
        if any(part is None for part in parts):
            continue
        sizes = [len(part) for part in parts]
        whole = torch.empty((sum(sizes), *parts[0].shape[1:]), dtype=dtype, device=device)
        for linear, part in zip(linears, whole.split(sizes)):
            setattr(linear, name, Parameter(part, False))


def products(linears: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
    """``linear(x)`` of each; parts of one product where the weights are one matrix in memory."""
    joint = whole(linears)
    if joint is None:
        return [linear(x) for linear in linears]
    return torch.nn.functional.linear(x, *joint).split(sizes(linears), dim=-1)


def sizes(linears: Sequence[Linear]) -> list[int]:
    """How many numbers each gives."""
    return [linear.out_features for linear in linears]


def whole(linears: Sequence[Linear]) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of these as of one layer; None where they lie apart."""
    weight = _whole([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears]
    bias = None if all(own is None for own in biases) else _whole(biases)
    if weight is None or (bias is None and biases[0] is not None):
        return None
    return weight, bias


def _whole(parts: Sequence[Tensor | None]) -> Tensor | None:
    """What these are the parts of, one after another; None where they are not."""
    first = parts[0]
    if any(part is None or not part.is_contiguous() for part in parts):
        return None
    place, memory = first.data_ptr(), first.untyped_storage().data_ptr()
    for part in parts:
        if part.data_ptr() != place or part.untyped_storage().data_ptr() != memory:
            return None
        place += part.nbytes
    shape = (sum(len(part) for part in parts), *first.shape[1:])
    return first.as_strided(shape, first.stride())
