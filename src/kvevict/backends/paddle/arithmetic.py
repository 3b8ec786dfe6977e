"""What a layer computes beside its products and attention: norms, RoPE, the gate of the MLP.

On a GPU a decoded token is little more than launches. Our kernels do the most in one; where Triton
is not, Paddle has operations of its own. None of these has run on a GPU for this project: each is
held to its parts where it is to be used, and left out where it differs or is not there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import paddle
from paddle.nn import functional

from ...ops import kernels
from ...tensors import Tensor

Pair = tuple  # of tensors
Gate = Callable[[Tensor, Tensor], Tensor]

# Between an operation and its parts, of the largest number: some roundings of either type.
LIMITS = {"float32": 1e-5, "float16": 2**-8, "bfloat16": 2**-5}


class Arithmetic(NamedTuple):
    """Operations of a layer. A ``layer`` is PaddleNLP's RMS norm.

    Attributes:
        norm: ``norm(layer, x)`` is the norm of ``x [..., hidden]``.
        add_norm: ``add_norm(layer, x, more)`` is x + more, and its norm.
        tables: ``tables(cos, sin)``, each ``[tokens, head_dim]``, or ``[batch, tokens, head_dim]``
            where positions differ, is what :attr:`rotate` wants of them.
        rotate: ``rotate(q, k, tables)`` is RoPE on halves of ``[batch, heads, tokens, head_dim]``.
        gate: ``gate(x, y)`` is silu(x) · y.
    """

    norm: Callable[[paddle.nn.Layer, Tensor], Tensor]
    add_norm: Callable[[paddle.nn.Layer, Tensor, Tensor], Pair]
    tables: Callable[[Tensor, Tensor], Pair]
    rotate: Callable[[Tensor, Tensor, Pair], Pair]
    gate: Gate


def choose(
    parameters: list[Tensor], hidden: int, heads: tuple[int, int], head_dim: int
) -> Arithmetic:
    """The fastest that is right for a model, on its device.

    Args:
        parameters: all of the model's; Paddle's fused operations want them of one type.
        hidden: its width.
        heads: query heads and kv heads.
        head_dim: of each.
    """
    first = parameters[0]
    if gpu := kernels(first):
        return _by_kernels(gpu)
    if not first.is_cuda or any(other.dtype != first.dtype for other in parameters):
        return PLAIN
    return _fused(str(first.place), str(first.dtype).rpartition(".")[2], hidden, heads, head_dim)


def swapped(x: Tensor) -> Tensor:
    """``[batch, tokens, heads, head_dim]`` as ``[batch, heads, tokens, head_dim]``, or back.

    Of one token by its shape alone: strides would have the next reshape copy it.
    """
    batch, one, other, head_dim = x.shape
    return x.reshape([batch, other, one, head_dim]) if 1 in (one, other) else x.swapaxes(1, 2)


def _by_kernels(gpu: ModuleType) -> Arithmetic:
    return Arithmetic(
        norm=lambda layer, x: gpu.rms_norm(x, layer.weight, layer.variance_epsilon),
        add_norm=lambda layer, x, more: gpu.add_rms_norm(
            x, more, layer.weight, layer.variance_epsilon
        ),
        tables=lambda cos, sin: (cos, sin),
        rotate=lambda q, k, tables: tuple(gpu.turn(x, *tables) for x in (q, k)),
        gate=gpu.gated,
    )


def _norm(layer: paddle.nn.Layer, x: Tensor) -> Tensor:
    """PaddleNLP's norm squares with ``pow``, ten times as slow on a CPU as a product."""
    wide = x.astype("float32")
    wide = wide * paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + layer.variance_epsilon)
    return wide.astype(layer.weight.dtype) * layer.weight


def _add_norm(layer: paddle.nn.Layer, x: Tensor, more: Tensor) -> Pair:
    x = x + more
    return x, _norm(layer, x)


def _tables(cos: Tensor, sin: Tensor) -> Pair:
    """Sines with the sign of their half, for all heads."""
    first, second = sin.chunk(2, dim=-1)
    both = cos, paddle.concat([-first, second], axis=-1)
    return both if cos.ndim == 2 else tuple(table.unsqueeze(1) for table in both)


def _rotate(q: Tensor, k: Tensor, tables: Pair) -> Pair:
    """Halves trade places.

    Contiguous heads and tables that broadcast from the left take Paddle's fast path on a CPU, five
    times as fast as PaddleNLP's own.
    """
    cos, sin = tables
    heads = (x.contiguous() for x in (q, k))
    return tuple(x * cos + x.roll(x.shape[-1] // 2, -1) * sin for x in heads)


def _gate(x: Tensor, y: Tensor) -> Tensor:
    """Paddle's swiglu is three times as slow on a CPU as its two parts."""
    return functional.silu(x) * y


def _fused_norm(layer: paddle.nn.Layer, x: Tensor, added_to: Tensor | None = None) -> Pair:
    """The norm, of the sum with ``added_to`` where there is one, and that sum."""
    call, no_bias = paddle.incubate.nn.functional.fused_rms_norm, None
    epsilon, axis = layer.variance_epsilon, x.ndim - 1
    return call(x, layer.weight, no_bias, epsilon, axis, residual=added_to)[:2]


def _fused_tables(cos: Tensor, sin: Tensor) -> Pair:
    """One row a token: Paddle takes one table, so sequences with rows of their own become one."""
    return tuple(table.reshape([1, -1, 1, table.shape[-1]]) for table in (cos, sin))


def _fused_rotate(q: Tensor, k: Tensor, tables: Pair) -> Pair:
    cos, sin = tables
    q, k = swapped(q), swapped(k)
    turned = paddle.incubate.nn.functional.fused_rotary_position_embedding(
        *(x.reshape([-1, cos.shape[1], *x.shape[2:]]) for x in (q, k)),
        sin=sin,
        cos=cos,
        use_neox_rotary_style=False,  # that is Paddle's name for pairs of neighbours
    )
    return tuple(swapped(x.reshape(of.shape)) for x, of in zip(turned, (q, k)))


PLAIN = Arithmetic(_norm, _add_norm, _tables, _rotate, _gate)
FUSED = Arithmetic(
    norm=lambda layer, x: _fused_norm(layer, x)[0],
    add_norm=lambda layer, x, more: tuple(reversed(_fused_norm(layer, more, x))),
    tables=_fused_tables,
    rotate=_fused_rotate,
    gate=lambda x, y: functional.swiglu(x, y),
)
NAMES = {  # that Paddle has for them
    "norm": "fused_rms_norm",
    "add_norm": "fused_rms_norm of a sum",
    "rotate": "fused_rotary_position_embedding",
    "gate": "swiglu",
}


@lru_cache
@paddle.no_grad()
def _fused(
    place: str, dtype: str, hidden: int, heads: tuple[int, int], head_dim: int
) -> Arithmetic:
    """:data:`FUSED`, but for what does not agree with its parts on the current device.

    What is left out is told. ``place`` tells devices apart that have been current.
    """
    wrong: dict[str, str] = {}
    for part, inputs in _trials(dtype, hidden, heads, head_dim):
        why = _difference(part, inputs)
        if why and part not in wrong:
            wrong[part] = why
            print(f"going on without Paddle's {NAMES[part]}, slower: {why}", file=sys.stderr)
    parts = [*wrong, *(["tables"] if "rotate" in wrong else [])]
    return FUSED._replace(**{part: getattr(PLAIN, part) for part in parts})


def _trials(
    dtype: str, hidden: int, heads: tuple[int, int], head_dim: int
) -> Iterator[tuple[str, tuple]]:
    """Operations and random inputs: rows of one token and of several, alike and each its own."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Tensor:
        return paddle.to_tensor(rng.normal(size=shape).astype("float32")).astype(dtype)

    layer = SimpleNamespace(weight=draw(hidden), variance_epsilon=0.5)  # as large as to show
    for tokens in (1, 5):
        x, y = draw(2, tokens, hidden), draw(2, tokens, hidden)
        yield from (("norm", (layer, x)), ("add_norm", (layer, x, y)), ("gate", (x, y)))
        for rows in ((tokens,), (2, tokens)):
            q, k = (draw(2, count, tokens, head_dim) for count in heads)
            yield "rotate", (q, k, draw(*rows, head_dim), draw(*rows, head_dim))


def _difference(part: str, inputs: tuple) -> str | None:
    """Why an operation is not to be used; None where it is."""
    expected = _run(PLAIN, part, inputs)
    try:
        same = all(map(_close, _run(FUSED, part, inputs), expected))
    except Exception as error:  # Paddle raises several kinds, over many lines
        return (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return None if same else "here it computes something else"


def _run(arithmetic: Arithmetic, part: str, inputs: tuple) -> tuple[Tensor, ...]:
    if part == "rotate":
        q, k, cos, sin = inputs
        inputs = q, k, arithmetic.tables(cos, sin)
    result = getattr(arithmetic, part)(*inputs)
    return result if isinstance(result, tuple) else (result,)


def _close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    limit = LIMITS[str(got.dtype).rpartition(".")[2]]
    got, expected = got.astype("float32"), expected.astype("float32")
    return float((got - expected).abs().max()) <= limit * float(expected.abs().max())
