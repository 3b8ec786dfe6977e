"""A model by the harness's words for devices, on the framework that is there."""

from __future__ import annotations

from importlib.util import find_spec

from .. import backends
from ..backends import LoadedModel
from ..models.checkpoint import Checkpoint


def load(
    checkpoint: Checkpoint, dtype: str | None, device: str | None, framework: str | None
) -> LoadedModel:
    """As :func:`kvevict.load`; the framework is the first that is installed, unless it is named."""
    return backends.load(checkpoint, dtype, _device(device), framework or _installed_framework())


def _device(harness: str | None) -> str | None:
    """A device by our name. The harness says "cuda:0" where nobody chose, GPU or not."""
    return None if harness in (None, "cuda", "cuda:0") else harness.replace("cuda", "gpu")


def _installed_framework() -> str:
    """The first that this Python has; Paddle, so that its error is seen, where it has none."""
    found = (name for name, own in backends.FRAMEWORKS.items() if all(map(find_spec, own)))
    return next(found, "paddle")
