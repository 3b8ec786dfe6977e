"""What attention can report about its weights, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Union, get_args

from ..errors import InputError
from ..tensors import Tensor

Reduction = Literal["sum", "sum_of_squares", "count_below_mean"]


@dataclass(frozen=True)
class ColumnStatistic:
    """A reduction of the attention weights a_ij over query rows i, one value for each key j.

    Attributes:
        reduce: ``sum`` Σ_i a_ij; ``sum_of_squares`` Σ_i a_ij²; ``count_below_mean`` the number of
            rows i ≥ j whose weight on j is below the row's mean weight, 1 / (i + 1).
        rows: how many of the last query rows take part; None for all. More than there are is all.
        per_kv_head: sum the weights over the query heads of each group (for ``count_below_mean``
            before the comparison, with the mean of the sums; otherwise after the reduction).
        causal: False to let these rows see every key, those after them too. Attention itself stays
            causal. For sums only, and by :func:`kvevict.attention.attend`, not by its backends.
        fading: f; the i-th of these rows from the end, from 1, has its weights times i^-f before
            they are reduced. For causal sums only, by :func:`kvevict.attention.attend` as well.
            Rows that are decoded fade what was there by 2^-f each, in place of a window of rows.
    """

    reduce: Reduction
    rows: int | None = None
    per_kv_head: bool = True
    causal: bool = True
    fading: float = 0.0

    def __post_init__(self) -> None:
        _check_rows(self.rows)
        if self.reduce not in get_args(Reduction):
            known = ", ".join(get_args(Reduction))
            raise InputError(f"a column statistic is one of {known}, not {self.reduce!r}")
        if not self.causal and self.reduce == "count_below_mean":
            raise InputError("count_below_mean is of causal rows")
        if not 0 <= self.fading < float("inf"):
            raise InputError(f"fading is a number from 0, not {self.fading!r}")
        if self.fading and (self.reduce == "count_below_mean" or not self.causal):
            raise InputError("rows fade in sums of causal weights only")

    @property
    def power(self) -> int:
        """Of a weight in the reduction."""
        return 2 if self.reduce == "sum_of_squares" else 1

    def first_row(self, tokens: int) -> int:
        """The first of ``tokens`` query rows that takes part."""
        return 0 if self.rows is None else max(0, tokens - self.rows)


@dataclass(frozen=True)
class WindowRows:
    """The attention weights a_ij of the last query rows themselves, for what no reduction gives.

    Attributes:
        rows: how many; more than there are is all.
    """

    rows: int

    def __post_init__(self) -> None:
        _check_rows(self.rows or 0)

    def first_row(self, tokens: int) -> int:
        """The first of ``tokens`` query rows that takes part."""
        return max(0, tokens - self.rows)


@dataclass(frozen=True)
class QueryMoments:
    """Mean and covariance of the prompt's queries before RoPE, of each query head: see `Moments`.

    What questions will look like that nobody has asked. Of a prompt alone: decoding adds nothing.

    Attributes:
        skip: first tokens that take no part; the last token does in any case.
    """

    skip: int = 4

    def __post_init__(self) -> None:
        if type(self.skip) is not int or self.skip < 0:
            raise InputError(f"the tokens that moments skip are a number from 0, not {self.skip!r}")


@dataclass(frozen=True)
class RepeatedChunks:
    """How strongly a prompt is attended to by a model that repeats it (KVzip, arXiv 2505.23416).

    The prompt is followed, once for each of its chunks, by the instruction to repeat it and by the
    chunk. The weights of all these tokens are a softmax over the sinks, the entries of that chunk
    and the repeated tokens so far; an entry's value is the largest, over rows and the group's
    heads. Of a prompt alone: decoding adds nothing.

    Attributes:
        size: tokens of a chunk.
        n_sink: sinks are at least so many first entries, and all before the context begins.
    """

    size: int = 2000
    n_sink: int = 4

    def __post_init__(self) -> None:
        _check_rows(self.size or 0)


class Moments(NamedTuple):
    """What `QueryMoments` asks for.

    Attributes:
        mean: float32 ``[kv_heads, group, head_dim]``.
        covariance: over the number of queries, ``[kv_heads, group, head_dim, head_dim]``.
    """

    mean: Tensor
    covariance: Tensor


# What a scorer may ask for. ``attend`` makes the first two on its way and decoding goes on with
# them; the others are the prefill's. A further kind is a frozen dataclass beside these.
Weights = Union[ColumnStatistic, WindowRows]
Statistic = Union[Weights, QueryMoments, RepeatedChunks]


def _check_rows(rows: int | None) -> None:
    if rows is not None and (type(rows) is not int or rows < 1):
        raise InputError(f"the rows of a statistic are a number above 0, not {rows!r}")


class Output(NamedTuple):
    """Attention's result.

    Attributes:
        out: ``[batch, query_heads, tokens, head_dim]``.
        lse: natural logarithm of the sum of exponentials of the scaled scores, float32
            ``[batch, query_heads, tokens]``.
        columns: for each of the weights asked for, float32 ``[batch, kv_heads, keys]``, or
            ``[batch, query_heads, keys]`` where it is not ``per_kv_head``; window rows are
            ``[batch, query_heads, rows, keys]``.
    """

    out: Tensor
    lse: Tensor
    columns: dict[Weights, Tensor]


def check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless the shapes fit causal grouped-query attention."""
    fits = (
        len(q.shape) == 4
        and list(k.shape) == list(v.shape)
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and q.shape[1] % k.shape[1] == 0
        and 0 < q.shape[2] <= k.shape[2]
    )
    if not fits:
        raise ValueError(
            f"attention needs q [batch, query_heads, tokens, head_dim] and k, v [batch, kv_heads, "
            f"keys, head_dim] with kv_heads dividing query_heads and tokens at most keys, not "
            f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
