"""Which library multiplies a model's activations by its weights on a CPU.

The one that comes with a framework is often not the fastest on the processor at hand, by a factor
of two and more. Those that there are take part in a short trial on the model's own layers, and the
fastest of those whose numbers are right is taken: for a token by itself, for a batch of some, whose
weights are waited for, and for a prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock
from typing import Any

import numpy as np

from ..environment import cpu_threads
from ..tensors import Tensor

SIZES = {"token": 1, "batch": 2, "prompt": 128}  # how many tokens an input has at least
FEWEST_WEIGHTS = 1 << 20  # of a layer's matrices that are worth a trial
TRIALS = 3  # of each product, in turns, after the pass that shows its numbers
BATCH_TOKENS = 8  # in a trial of that size
PROMPT_TOKENS = 4096  # in a trial at most, as many as the engine takes at a time
PROMPT_OPERATIONS = 4e9  # of a pass for each thread, about: some 20 ms
FASTER = 0.9  # of the framework's time is what another product must not need more than
ERRORS = {"float32": 1e-4, "bfloat16": 0.1}  # let pass, beside the root mean square


@dataclass(frozen=True)
class Product:
    """A library's way to take an input through a model's linear layers.

    Attributes:
        name: in a run's record.
        linear: a layer and its input ``[..., in]`` to ``x Wᵀ + b``, ``[..., out]``.
        mlp: a block and its input to ``down(silu(gate(x)) · up(x))``.
        dtypes: in which it computes; None for all.
        several: several layers and their one input to the result of each, where there is a faster
            way than one after another.
    """

    name: str
    linear: Callable[[Any, Tensor], Tensor]
    mlp: Callable[[Any, Tensor], Tensor]
    dtypes: tuple[str, ...] | None = None
    several: Callable[[Sequence[Any], Tensor], Sequence[Tensor]] | None = None

    def linears(self, layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
        """The results of several linear layers with one input."""
        if self.several:
            return self.several(layers, x)
        return [self.linear(layer, x) for layer in layers]


class Products:
    """The products of a model: the framework's own, and others where they are faster.

    Args:
        products: the framework's own, and others that may take its place.
        block: a layer of the model, whose parts have Llama's names.
        dtype: of weights and activations.
        tensor: makes one of it from an array.
        wanted: the name of the one to take for each of ``SIZES``, if its numbers are right here.
    """

    def __init__(
        self,
        products: tuple[Product, ...],
        block: Any,
        dtype: str,
        tensor: Callable[[np.ndarray], Tensor],
        wanted: Mapping[str, str] | None = None,
    ) -> None:
        self._own, self._wanted = products[0], wanted or {}
        self._others = [p for p in products[1:] if p.dtypes is None or dtype in p.dtypes]
        self._block, self._dtype, self._tensor = block, dtype, tensor

    def __call__(self, x: Tensor) -> Product:
        """The product for an input ``[batch, tokens, hidden]``."""
        tokens = max(1, x.shape[0] * x.shape[1])  # none go as one does
        return self.chosen[next(size for size in reversed(SIZES) if tokens >= SIZES[size])]

    @cached_property
    def chosen(self) -> dict[str, Product]:
        """By ``SIZES``; the same for all models of the process whose layers are alike."""
        shapes = tuple(tuple(x.shape) for x in self._block.parameters() if len(x.shape) == 2)
        weights = sum(map(math.prod, shapes))
        if not self._others or weights < FEWEST_WEIGHTS:
            return dict.fromkeys(SIZES, self._own)
        prompt = int(PROMPT_OPERATIONS * cpu_threads() / (2 * weights))
        prompt = min(max(prompt, SIZES["prompt"]), PROMPT_TOKENS)
        tokens = {"token": 1, "batch": BATCH_TOKENS, "prompt": prompt}
        found = {}
        with _one_at_a_time:
            for size in SIZES:
                key = (self._own, *self._others, shapes, self._dtype, size, self._wanted.get(size))
                if key not in _choices:
                    _choices[key] = self._choose(tokens[size], self._wanted.get(size))
                found[size] = _choices[key]
        return found

    def _choose(self, tokens: int, wanted: str | None) -> Product:
        if wanted == self._own.name:
            return self._own
        trial = Trial.of(self._block, self._tensor, tokens)
        right = trial.right(self._own, self._others, ERRORS[self._dtype])
        by_name = {product.name: product for product in right}
        return by_name.get(wanted) or trial.fastest(self._own, right)


@dataclass(frozen=True)
class Trial:
    """The linear layers of one of a model's layers, and what goes into them.

    Attributes:
        block: the layer.
        x: ``[1, tokens, hidden]``.
        mixed: in the place of attention's output, ``[1, tokens, heads · head_dim]``.
    """

    block: Any
    x: Tensor
    mixed: Tensor

    @classmethod
    def of(cls, block: Any, tensor: Callable[[np.ndarray], Tensor], tokens: int) -> Trial:
        """With random numbers."""
        hidden = block.input_layernorm.weight.shape[0]
        widths = (hidden, math.prod(block.self_attn.o_proj.weight.shape) // hidden)
        draw = np.random.default_rng(0)
        return cls(
            block, *(tensor(draw.standard_normal((1, tokens, n), np.float32)) for n in widths)
        )

    def run(self, product: Product) -> list[Tensor]:
        """One pass of a product through the layers; the results."""
        attention = self.block.self_attn
        of_x = (attention.q_proj, attention.k_proj, attention.v_proj)
        return [
            *product.linears(of_x, self.x),
            product.linear(attention.o_proj, self.mixed),
            product.mlp(self.block.mlp, self.x),
        ]

    def right(self, own: Product, others: list[Product], error: float) -> list[Product]:
        """Those of ``others`` whose every number is the framework's, but for rounding."""
        expected, found = self.run(own), []
        for product in others:
            # A library that fails, in whatever way, is as good as one that is not there.
            with suppress(Exception):
                if all(map(partial(_close, error), self.run(product), expected)):
                    found.append(product)
        return found

    def fastest(self, own: Product, others: list[Product]) -> Product:
        """The one of least time, in turns; another than the framework's by a clear margin."""
        best = dict.fromkeys((own, *others), math.inf)
        for product in [*best] * (TRIALS if others else 0):
            began = time.perf_counter()
            self.run(product)
            best[product] = min(best[product], time.perf_counter() - began)
        best[own] *= FASTER
        return min(best, key=best.get)


def _close(error: float, got: Tensor, expected: Tensor) -> bool:
    """Whether no number is off by more than ``error`` root mean squares; NaN is."""
    if got.shape != expected.shape:
        return False
    got, expected = got.float(), expected.float()
    return bool((got - expected).abs().max() <= error * (expected * expected).mean().sqrt())


_choices: dict[tuple, Product] = {}
_one_at_a_time = Lock()
