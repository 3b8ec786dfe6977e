"""The products that PyTorch has on a CPU: its own, which is MKL's in float32, and oneDNN's."""

from __future__ import annotations

from typing import Any

import torch

from .. import numpy_product
from ..products import Product
from . import joined

ROWS = 2048  # that go through an MLP at a time: what is between is many times wider


def _by_rows(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    parts = [block(part) for part in x.split(ROWS, dim=1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")


def _mlp(block: Any, x: torch.Tensor) -> torch.Tensor:
    """SiLU and the product with it are done to what oneDNN has just multiplied, in its cache."""
    product, gate, up = torch.ops.mkldnn._linear_pointwise, block.gate_proj, block.up_proj

    def rows(x: torch.Tensor) -> torch.Tensor:
        gated = product(x, gate.weight, gate.bias, "swish", [], "")
        return _linear(block.down_proj, product.binary(x, gated, up.weight, up.bias, "mul"))

    return _by_rows(rows, x)


OWN = Product("pytorch", lambda layer, x: layer(x), _by_rows, several=joined.products)
PRODUCTS = (
    OWN,
    Product("numpy", numpy_product.linear, numpy_product.mlp, ("float32",)),
    Product("onednn", _linear, _mlp, ("float32", "bfloat16")),
)
