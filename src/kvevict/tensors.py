"""The one thing that Paddle and PyTorch do not spell alike: where their functions live."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

Tensor = Any  # paddle.Tensor or torch.Tensor: the library uses the methods that both have


def namespace(x: Tensor) -> ModuleType:
    """``paddle`` or ``torch``, whichever made ``x``."""
    return sys.modules[type(x).__module__.partition(".")[0]]
