"""Methods of a model that others take the place of while contexts are open on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from ...errors import InputError

_entered: ContextVar[tuple[Callable, ...]] = ContextVar("entered", default=())
_lock = Lock()


class Replacement:
    """Stands in the place of a method and passes each call on to the context it belongs to.

    That is the innermost one that the caller's thread, or asyncio task, has entered itself; a
    thread that has entered none belongs to the one that is open.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.replaced = vars(model).get(name)  # a method of the model's own, put there by others
        self.original = self.replaced or getattr(type(model), name).__get__(model)
        self.open: list[Callable] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._current()(self.original, *args, **kwargs)

    def _current(self) -> Callable:
        candidates = list(self.open)
        own = [function for function in _entered.get() if function in candidates]
        if own:
            return own[-1]
        if len(candidates) > 1:
            raise InputError(
                f"{len(candidates)} contexts of evict are open on the model, none of them entered "
                "by this thread: enter one where the model is called"
            )
        if not candidates:
            raise InputError("the context of evict ended while the model was called")
        return candidates[0]


@contextmanager
def replaced(model: Any, name: str, function: Callable) -> Iterator[None]:
    """Within this context ``model.name(...)`` calls ``function(original, ...)``.

    Contexts nest, and those of several threads or tasks may overlap in any order.
    """
    attributes = vars(model)  # past PaddleNLP's own patching of assigned forwards
    with _lock:
        if not isinstance(attributes.get(name), Replacement):
            attributes[name] = Replacement(model, name)
        replacement = attributes[name]
        replacement.open.append(function)
    _entered.set((*_entered.get(), function))
    try:
        yield
    finally:
        _entered.set(tuple(other for other in _entered.get() if other is not function))
        with _lock:
            replacement.open.remove(function)
            if not replacement.open:
                del attributes[name]
                if replacement.replaced is not None:
                    attributes[name] = replacement.replaced
