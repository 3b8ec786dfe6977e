"""The contracts of a method's parts: a scorer, an allocator and a selector.

The scorer says how important each cache entry is, the allocator how many entries each kv head may
keep, the selector which ones these are. Any three go together; a published method is a choice of
three, one short file each in this package.

Whoever writes a part inherits from its class here, decorates it ``@dataclass(frozen=True)`` and
overrides what the class says. All tensors are the framework's own: use the methods that Paddle and
PyTorch share, and :mod:`kvevict.ops` and :mod:`kvevict.tensors` where they differ. Several policies
look at one view: write to nothing in it. Nothing should make a GPU wait: no ``if`` on a tensor, no
``tolist``. What a part returns is checked; what does not fit ends in one
sentence that names the part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from .. import budget
from ..attention import Moments, Statistic
from ..errors import InputError
from ..noise import Keys
from ..tensors import Tensor
from .settings import Settings


@dataclass(frozen=True)
class PromptShape:
    """What is known of a prompt before its first layer.

    Attributes:
        tokens: N.
        keep: share of its entries that are kept on average, in (0, 1], exact.
        question_tokens: how many of its last tokens are the question; None where nobody said.
        prefix_tokens: how many of its first tokens come before the context, such as a system
            prompt; 0 where nobody said.
    """

    tokens: int
    keep: Fraction
    question_tokens: int | None = None
    prefix_tokens: int = 0

    @property
    def entries(self) -> int:
        """Entries that a kv head keeps on average, protected ones included."""
        return budget.per_head(self.tokens, self.keep)


@dataclass(frozen=True)
class LayerView:
    """What a scorer or selector may look at. A selector sees the candidates alone, in every field.

    Attributes:
        statistics: what the scorer asked for, in its order, float32. A
            :class:`~kvevict.attention.ColumnStatistic` is ``[kv_heads, N]``, or ``[kv_heads, group,
            N]`` where not ``per_kv_head``; :class:`~kvevict.attention.WindowRows` are ``[kv_heads,
            group, rows, N]``; :class:`~kvevict.attention.RepeatedChunks` ``[kv_heads, N]``;
            :class:`~kvevict.attention.QueryMoments` :class:`~kvevict.attention.Moments`.
        keys, values: ``[kv_heads, N, head_dim]``, keys with RoPE applied, in the model's type.
        w_o: the output projection's rows for each query head, grouped by kv head:
            ``[kv_heads, group, head_dim, hidden]``.
        noise_keys: a key for each kv head, for :mod:`kvevict.noise`; only there they are looked at.
        prompt: what is known of the prompt.
        rotate_ahead: ``rotate_ahead(x, positions)`` is float32 ``x [..., head_dim]`` as this
            layer's RoPE will turn it on average over the positions that follow the prompt. None
            while decoding.
        replace_nonfinite: for selectors that score again: ``replace_nonfinite("values", x)`` is x
            with 0 for what is not finite. Nothing waits for it; the eviction raises an error at its
            end.
    """

    statistics: tuple[Tensor | Moments, ...]
    keys: Tensor
    values: Tensor
    w_o: Tensor
    noise_keys: Keys
    prompt: PromptShape | None = None
    rotate_ahead: Callable[[Tensor, int], Tensor] | None = None
    replace_nonfinite: Callable[[str, Tensor], Tensor] | None = None


class Scorer(Settings):
    """Importance of every entry of a layer.

    Attributes:
        prompt_only: whether it can score a prompt alone, and not go on while decoding: so it is
            with :class:`~kvevict.attention.QueryMoments` and
            :class:`~kvevict.attention.RepeatedChunks`.
        by_budget: whether scores depend on ``view.prompt``; otherwise policies that differ in their
            budgets share them.
    """

    prompt_only: ClassVar[bool] = False
    by_budget: ClassVar[bool] = False

    def statistics(self, prompt: PromptShape) -> tuple[Statistic, ...]:
        """What attention has to report for this prompt. Nothing, unless overridden.

        While decoding, the same statistics go on for the entries held, and the scorer is called
        again: with N the entries that each of some heads holds.
        """
        return ()

    def __call__(self, view: LayerView) -> Tensor:
        """Importance: float32 ``[kv_heads, N]``, finite; the higher is kept, of equals the first.

        Protected entries have a score too, which nobody looks at.
        """
        raise InputError(f"{type(self).__name__} must define __call__(view)")


class Allocator(Settings):
    """How many entries each kv head may keep, beside the protected ones.

    Attributes:
        scope: what the budget belongs to. ``layer``: :meth:`counts` is asked layer by layer.
            ``model``: the engine ranks the candidates of all layers and heads together, by their
            scores alone, and :meth:`counts` is never called.
    """

    scope: ClassVar[Literal["layer", "model"]] = "layer"

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> list[int] | Tensor:
        """Split a layer's budget.

        Args:
            scores: importance of the candidates, float32 ``[kv_heads, candidates]``.
            base: entries per head, on average over the model.
            layer: from 0, of ``layers``.

        Returns:
            Entries for each kv head, from 0 to ``candidates``. Over all layers they add up to
            base · kv_heads · layers; as int64 ``[kv_heads]`` on the device, where a GPU need not
            wait for them, each layer's to base · kv_heads.
        """
        raise InputError(f"{type(self).__name__} must define counts(scores, base, layer, layers)")


class Selector(Settings):
    """Which entries are kept.

    Attributes:
        takes_highest: whether it marks the highest scores and looks at nothing else. Only such a
            selector goes with an allocator whose scope is the model.
    """

    takes_highest: ClassVar[bool] = False

    def protected(self, prompt: PromptShape, entries: int) -> tuple[int, int]:
        """How many of the first and of the last entries are always kept. None, unless overridden.

        Args:
            entries: that a head keeps; the two together are at most that.
        """
        return 0, 0

    def __call__(
        self, scores: Tensor, counts: list[int] | Tensor, view: LayerView, prompt: PromptShape
    ) -> Tensor:
        """Choose among the candidates: the entries between the protected ones.

        Args:
            scores: float32 ``[kv_heads, candidates]``.
            counts: how many to keep for each head, at most ``candidates``; where the selector
                ``takes_highest``, it may be int64 ``[kv_heads]`` on the device.
            view: of the candidates.
            prompt: the whole prompt's shape.

        Returns:
            bool ``[kv_heads, candidates]`` with exactly ``counts`` set in each row.
        """
        name = type(self).__name__
        raise InputError(f"{name} must define __call__(scores, counts, view, prompt)")
