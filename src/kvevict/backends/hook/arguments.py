"""The arguments that a model is called with, each of them read or refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any

from ...errors import InputError

_signature = lru_cache(maxsize=16)(signature)  # of functions, not of a model's bound methods


class Call:
    """The arguments of one call.

    Args:
        method: what the model's library has in this place, of the class.
        args, kwargs: what it was called with, the model itself left out.

    Raises:
        InputError: the method takes no such arguments.
    """

    def __init__(self, method: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        parameters = _signature(method)
        try:
            bound = parameters.bind(None, *args, **kwargs).arguments
        except TypeError as error:
            raise InputError(f"{method.__qualname__}: {error}") from None
        self._rest: dict[str, Any] = {}
        for name, value in bound.items():
            several = parameters.parameters[name].kind is Parameter.VAR_KEYWORD
            self._rest.update(value if several else {name: value})
        del self._rest["self"]

    def take(self, name: str) -> Any:
        """What was given by that name, which is read then; None without."""
        return self._rest.pop(name, None)

    def take_tokens(self) -> Any:
        """The ids or the embeddings, whichever was given."""
        ids, embeddings = self.take("input_ids"), self.take("inputs_embeds")
        if (ids is None) == (embeddings is None):
            raise InputError("a model takes either input_ids or inputs_embeds")
        return embeddings if ids is None else ids

    def refuse_rest(self, model: Any) -> None:
        """Refuse what was given and not taken, what the config asks for, and training."""
        for name in ("output_attentions", "output_hidden_states"):
            wanted = self.take(name)
            self._rest[name] = (getattr(model.config, name) if wanted is None else wanted) or None
        for name, value in self._rest.items():
            if value is not None:
                raise InputError(f"eviction does not honour {name}: leave it out")
        if model.training:
            raise InputError("eviction is for inference: call model.eval() first")
