"""The kernels' tests: on the GPU where there is one, in Triton's interpreter where not."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch", reason="the kernels' tests compare in PyTorch")
ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
pytest.importorskip("triton", reason="the kernels are written in Triton")
