"""What the kernels' tests share: where they run, random inputs and a float64 reference.

They run on the GPU where there is one, and in Triton's interpreter where not. A test module that
imports this is skipped where PyTorch or Triton is missing.
"""

from __future__ import annotations

import math
import os
import sys

import pytest

torch = pytest.importorskip("torch", reason="the kernels are compared with PyTorch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and "TRITON_INTERPRET" not in os.environ:
        pytest.skip("Triton came before its interpreter was chosen", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read when a function is made a kernel, Triton's own too
pytest.importorskip("triton", reason="the kernels are written in Triton")

from kvevict import kernels  # noqa: E402

__all__ = ["DEVICE", "DTYPES", "TOLERANCE", "attention", "error", "heads", "kernels", "torch"]

# The interpreter multiplies matrices with NumPy, which has no bfloat16.
DTYPES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 6e-3}  # of outputs rounded to these types


def heads(batch: int, count: int, tokens: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Random ``[batch, count, tokens, head_dim]``, strided as a model's projections are."""
    x = torch.randn(batch, tokens, count, head_dim, device=DEVICE).to(dtype)
    return x.transpose(1, 2)


def attention(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights ``[batch, kv_heads, group, rows, keys]``, log-sum-exp and visibility, in float64."""
    batch, query_heads, rows, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = q.double().reshape(batch, kv_heads, query_heads // kv_heads, rows, head_dim)
    scores = grouped @ k.double().unsqueeze(2).mT / math.sqrt(head_dim)
    row = torch.arange(keys - rows, keys, device=q.device)
    visible = torch.arange(keys, device=q.device) <= row[:, None]
    scores = scores.masked_fill(~visible, -math.inf)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp(), lse.reshape(batch, query_heads, rows), visible


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the Euclidean norm; NaN never passes a comparison with it."""
    return ((got.double() - expected).norm() / expected.norm()).item()
