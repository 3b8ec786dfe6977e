"""Models: what a `--model_path` may be, and how it is loaded."""

from kvevict.models.builtin import BUILTINS, builtin_dir
from kvevict.models.loading import (
    DEFAULT_MODEL,
    DTYPES,
    FRAMEWORKS,
    LoadedModel,
    load,
    load_tokenizer,
)

__all__ = [
    "BUILTINS",
    "DEFAULT_MODEL",
    "DTYPES",
    "FRAMEWORKS",
    "LoadedModel",
    "builtin_dir",
    "load",
    "load_tokenizer",
]
