"""What both frameworks' hooks around ``generate`` share."""

from .arguments import Call
from .contexts import replaced
from .plain import check_model
from .sequences import Hook, Sequence

__all__ = ["Call", "Hook", "Sequence", "check_model", "replaced"]
