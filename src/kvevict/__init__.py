"""KV-cache eviction for long-context LLM inference on PaddlePaddle.

>>> from kvevict import NACL, evict
>>> with evict(model, NACL(keep_ratio=0.2)):
...     model.generate(**inputs, max_new_tokens=50)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from .backends import load, of_model
from .engine import Session, decode, prefill
from .errors import InputError
from .methods import (
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
from .models.families import unknown_class

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
    "decode",
    "evict",
    "load",
    "prefill",
]


def evict(model: Any, policy: Policy, example: int = 0) -> AbstractContextManager[list[Session]]:
    """Within this context the model's own ``generate`` keeps only what ``policy`` keeps.

    Everything of ``generate`` is there but beams, padding and drafted tokens: one prompt at a time,
    greedy or sampled. ``model(...)`` works alike, and goes on with a sequence when given the
    ``past_key_values`` that it returned.

    Args:
        model: of PaddleNLP or of transformers, of a class in ``kvevict.models.families``, in eval
            mode.
        policy: such as ``NACL(keep_ratio=0.2)``.
        example: the number of the context's first prompt; each further one has the next. It counts
            into the noise of the policies that draw: the same number, the same draw. Who enters a
            context for each prompt counts them here.

    Returns:
        A context manager that yields a list with the session of the last prompt:
        ``sessions[0].cache.nbytes``. Earlier ones are let go, and with them their caches.

    Raises:
        InputError: a model of another kind; within the context several prompts in a batch, beams,
            padding, or more tokens than the model has positions.
    """
    own = of_model(model)
    if own is None:
        raise unknown_class(type(model))
    return own.evict(model, policy, example)
