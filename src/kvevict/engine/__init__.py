"""From a prompt to its compressed cache, and on from there."""

from .decoding import decode, decode_together
from .prefilling import prefill
from .session import Decoder, Session

__all__ = ["Decoder", "Session", "decode", "decode_together", "prefill"]
