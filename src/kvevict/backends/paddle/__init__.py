"""Paddle, with the models of PaddleNLP: see :class:`kvevict.backends.Backend`."""

from __future__ import annotations

import logging
import warnings

from ...environment import quiet

# PaddleNLP sets its logger to DEBUG when it is imported; a filter survives that, a level not.
logging.getLogger("PaddleNLP").addFilter(lambda record: record.levelno >= logging.WARNING)
# PaddleNLP calls functions of Paddle that are deprecated; its users can do nothing about it.
warnings.filterwarnings("ignore", module=r"paddlenlp\.")
with quiet():
    import paddlenlp.transformers  # noqa: F401

from .build import build
from .decoder import PaddleDecoder as decoder
from .device import (
    choose_dtype,
    device_name,
    peak_device_bytes,
    use_device,
)
from .generate import evict

__all__ = [
    "build",
    "choose_dtype",
    "decoder",
    "device_name",
    "evict",
    "peak_device_bytes",
    "use_device",
]
