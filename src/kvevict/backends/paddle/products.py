"""The products that there are on a CPU beside Paddle: its own, which is MKL's, and NumPy's."""

from __future__ import annotations

from typing import Any

import paddle

from .. import numpy_product
from ..products import Product


def _mlp(block: Any, x: paddle.Tensor) -> paddle.Tensor:
    # PaddleNLP's swiglu is three times as slow on a CPU as its two parts.
    gated = paddle.nn.functional.silu(block.gate_proj(x)) * block.up_proj(x)
    return block.down_proj(gated)


OWN = Product("paddle", lambda layer, x: layer(x), _mlp)
PRODUCTS = (OWN, Product("numpy", numpy_product.linear, numpy_product.mlp, ("float32",)))
