"""Models as they lie on disk or on a hub; no framework."""

from kvevict.models.builtin import BUILTINS, builtin_dir
from kvevict.models.source import DEFAULT_MODEL, load_tokenizer, read_checkpoint

__all__ = ["BUILTINS", "DEFAULT_MODEL", "builtin_dir", "load_tokenizer", "read_checkpoint"]
