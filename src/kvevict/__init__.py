"""KV-cache eviction for long-context LLM inference on PaddlePaddle.

>>> from kvevict import NACL, evict
>>> with evict(model, NACL(keep_ratio=0.2)):
...     model.generate(**inputs, max_new_tokens=50)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from .errors import InputError
from .policies import (
    H2O,
    METHODS,
    NACL,
    TOVA,
    AdaKV,
    CriticalAdaKV,
    CriticalKV,
    Full,
    KeyNorm,
    LaProx,
    Policy,
    PyramidKV,
    Random,
    Scissorhands,
    SnapKV,
    StreamingLLM,
    build,
)

__version__ = "0.1.0"
__all__ = [
    "H2O",
    "METHODS",
    "NACL",
    "TOVA",
    "AdaKV",
    "CriticalAdaKV",
    "CriticalKV",
    "Full",
    "InputError",
    "KeyNorm",
    "LaProx",
    "Policy",
    "PyramidKV",
    "Random",
    "Scissorhands",
    "SnapKV",
    "StreamingLLM",
    "__version__",
    "build",
    "evict",
]


def evict(model: Any, policy: Policy, example: int = 0) -> AbstractContextManager:
    """Within this context the model's own ``generate`` keeps only what ``policy`` keeps.

    Takes a PaddleNLP ``LlamaForCausalLM``; see
    :func:`kvevict.integrations.paddlenlp.evict` for what it yields and raises.
    """
    from .integrations import paddlenlp

    return paddlenlp.evict(model, policy, example)
