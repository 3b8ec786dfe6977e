"""The products that there are on a CPU beside Paddle: its own, which is MKL's, and NumPy's."""

from __future__ import annotations

from typing import Any

import paddle

from .. import numpy_product
from ..products import Product
from .arithmetic import PLAIN, Gate


def mlp(block: Any, x: paddle.Tensor, gate: Gate = PLAIN.gate) -> paddle.Tensor:
    """Paddle's own way through a block."""
    return block.down_proj(gate(block.gate_proj(x), block.up_proj(x)))


OWN = Product("paddle", lambda layer, x: layer(x), mlp)
PRODUCTS = (OWN, Product("numpy", numpy_product.linear, numpy_product.mlp, ("float32",)))
