"""KV-cache eviction for long-context LLM inference on PaddlePaddle.

>>> from kvevict import NACL, evict
>>> with evict(model, NACL(keep_ratio=0.2)):
...     model.generate(**inputs, max_new_tokens=50)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .methods import (
    H2O,
    METHODS,
    NACL,
    TOVA,
    AdaKV,
    CriticalAdaKV,
    CriticalKV,
    DefensiveKV,
    ExpectedAttention,
    Fade,
    Full,
    KeyDiff,
    KeyNorm,
    KVzip,
    LaProx,
    LayerDefensiveKV,
    NACLPaper,
    Policy,
    PyramidKV,
    Random,
    Scissorhands,
    SnapKV,
    StreamingLLM,
    build,
)

if TYPE_CHECKING:
    from .backends import load
    from .document import Document
    from .engine import Session, decode, prefill
    from .generation import generate

__version__ = "0.1.0"
__all__ = [
    "H2O",
    "METHODS",
    "NACL",
    "TOVA",
    "AdaKV",
    "CriticalAdaKV",
    "CriticalKV",
    "DefensiveKV",
    "Document",
    "ExpectedAttention",
    "Fade",
    "Full",
    "InputError",
    "KVzip",
    "KeyDiff",
    "KeyNorm",
    "LaProx",
    "LayerDefensiveKV",
    "NACLPaper",
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
    "generate",
    "load",
    "prefill",
]


LATE = {  # they bring NumPy
    "Document": "document",
    "decode": "engine",
    "generate": "generation",
    "load": "backends",
    "prefill": "engine",
}


def __getattr__(name: str) -> Any:
    if name in LATE:
        return getattr(import_module(f".{LATE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def evict(model: Any, policy: Policy, example: int = 0) -> AbstractContextManager[list[Session]]:
    """Within this context the model's own ``generate`` keeps only what ``policy`` keeps.

    Everything of ``generate`` is there but beams and drafted tokens: greedy or sampled, one prompt
    or several with their padding on the left and their ``attention_mask``. They are prefilled one
    at a time and decoded as a batch; equal ones side by side, as ``num_return_sequences`` makes
    them, are one prompt and share its cache. ``model(...)`` works alike, and goes on with its
    sequences when given the ``past_key_values`` that it returned.

    The context is the model's: what other threads ask it meanwhile is evicted, too. Threads and
    asyncio tasks that each enter one of their own are each in their own.

    Args:
        model: of PaddleNLP or of transformers, of a class in ``kvevict.models.families``, in eval
            mode.
        policy: such as ``NACL(keep_ratio=0.2)``.
        example: the number of the context's first prompt; each further one has the next. It counts
            into the noise of the policies that draw: the same number, the same draw. Who enters a
            context for each prompt counts them here.

    Returns:
        A context manager that yields a list with the sessions of the last call's prompts:
        ``sessions[0].cache.nbytes``. Earlier ones are let go, and with them their caches, but for
        those whose ``past_key_values`` somebody holds.

    Raises:
        InputError: a model of another kind, or one that another library has quantised, adapted,
            hooked or spread over devices; within the context beams, padding on the right, an
            argument of ``forward`` that eviction does not honour, or more tokens than the model has
            positions.
    """
    from .backends import of_model
    from .models.families import unknown_class

    own = of_model(model)
    if own is None:
        raise unknown_class(type(model))
    if not isinstance(policy, Policy):
        raise InputError(f"evict takes a policy, such as NACL(keep_ratio=0.2), not {policy!r}")
    return own.evict(model, policy, example)
