"""From a prompt to its compressed cache, and on from there."""

from .batch import Batch
from .decoding import decode, decode_all, decode_together, stream
from .likelihood import log_likelihood, log_likelihoods
from .prefilling import prefill
from .repeating import longest_prompt
from .session import Decoder, Session

__all__ = [
    "Batch",
    "Decoder",
    "Session",
    "decode",
    "decode_all",
    "decode_together",
    "log_likelihood",
    "log_likelihoods",
    "longest_prompt",
    "prefill",
    "stream",
]
