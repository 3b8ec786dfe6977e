"""Models that are no longer what their library loads, refused by name.

A decoder calls a model's parts one by one and reads the weights of some. What others have put in
the place of a part, or around it, would be passed by unseen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...errors import InputError
from ...tensors import Tensor
from .contexts import Replacement

FLOATS = ("float32", "bfloat16", "float16")


def check_model(
    parts: Iterable[tuple[str, Any]],
    weights: Iterable[tuple[str, Tensor]],
    libraries: tuple[str, ...],
    hooks: tuple[str, ...],
    kind: type,
) -> None:
    """Refuse a part that is another library's, hooked or patched, and weights but plain floats.

    Args:
        parts: modules, or layers, with their names: the model first, which may be of any class.
        weights: with their names.
        libraries: how the names of the Python modules begin that have the parts' classes.
        hooks: attributes that hold what is to be called before and after a part.
        kind: the class of the framework's own parameters.
    """
    for name, part in parts:
        owner = type(part).__module__ + "."
        if name and not owner.startswith(libraries):
            raise InputError(
                f"evict takes a model neither quantised nor adapted, and {name} is a "
                f"{owner}{type(part).__qualname__}: load it unquantised, with adapters merged"
            )
        if any(getattr(part, attribute) for attribute in hooks):
            raise InputError(f"evict would pass by the hooks of {name or 'the model'}")
        if not isinstance(vars(part).get("forward"), (Replacement, type(None))):
            raise InputError(
                f"evict would pass by what was put in the place of the forward of "
                f"{name or 'the model'}, such as offloading: load the model onto one device"
            )
    for name, weight in weights:
        dtype = str(weight.dtype).rpartition(".")[-1]
        if dtype not in FLOATS or type(weight) is not kind:
            what = dtype if type(weight) is kind else type(weight).__name__
            raise InputError(f"evict takes weights in {', '.join(FLOATS)}, and {name} is {what}")
