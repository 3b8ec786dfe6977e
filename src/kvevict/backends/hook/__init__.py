"""What both frameworks' hooks around ``generate`` share."""

from .arguments import Call
from .contexts import replaced
from .plain import check_model
from .sequences import Hook, Sequences

__all__ = ["Call", "Hook", "Sequences", "check_model", "replaced"]
