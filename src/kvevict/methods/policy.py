"""An eviction method with its settings, and methods composed of others' parts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar, Literal, Optional

from ..budget import Ratio
from ..errors import InputError
from .base import Allocator, PromptShape, Scorer, Selector
from .parts import Equal, TopK
from .settings import Settings, check_frozen, later

PARTS = {"scorer": Scorer, "allocator": Allocator, "selector": Selector}


@dataclass(frozen=True)
class Policy(Settings):
    """An eviction method with its settings.

    A method is a subclass, a frozen dataclass whose fields are the paper's hyper-parameters. It
    has a ``name`` and makes a :attr:`scorer` of its fields; :attr:`allocator` and :attr:`selector`
    where they are not :class:`Equal` and :class:`TopK`. A prompt's budget is given as a share or
    in entries, protected ones included; it is exact in total: kv heads · layers times it.

    Attributes:
        name: what results are filed under.
        listed: whether it is offered as a method, and not to studies alone.
        default_keep_ratio: where neither a share nor a number is given.
        keep_ratio: share of the prompt's entries to keep, in (0, 1]; None beside a budget.
        budget: entries per kv head to keep, on average; shorter prompts are left whole.
        min_eviction_seqlen: prompts of this many tokens or fewer are left whole. By default 2048,
            as in NACL's release, and 0 beside a budget.
        seed: for the methods that draw.
        decode_slack: go on evicting while decoding, whenever a head holds more than this many
            entries above its budget; None to let the cache grow with the answer.
        decode_drop: share of the budget that such an eviction frees beyond the excess.
        kv_dtype: what kept entries are quantised to, see :mod:`kvevict.quantised`; None to keep
            them as they are.

    Raises:
        InputError: a setting out of range, or parts that break their contracts or do not fit.
    """

    name: ClassVar[str] = ""
    listed: ClassVar[bool] = True
    default_keep_ratio: ClassVar[float] = 0.2

    keep_ratio: Optional[Ratio] = None
    budget: Optional[int] = later(None)
    min_eviction_seqlen: Optional[int] = None
    seed: int = 0
    decode_slack: Optional[int] = None
    decode_drop: Ratio = Ratio(0.0)
    kv_dtype: Optional[Literal["int8", "fp8", "int4", "int2"]] = later(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            raise InputError(f"{type(self).__name__} must have a name")
        if self.budget is None:
            self._default("keep_ratio", Ratio(self.default_keep_ratio, "keep_ratio"))
        elif self.keep_ratio is not None:
            raise InputError("a budget is given as keep_ratio or in entries as budget, not as both")
        elif self.budget < 1:
            raise InputError(f"budget must be at least 1, not {self.budget}")
        self._default("min_eviction_seqlen", self.default_min_eviction_seqlen(self.budget))
        if self.keep_ratio == 0:
            raise InputError("keep_ratio must be above 0")
        if self.min_eviction_seqlen < 0:
            raise InputError("min_eviction_seqlen must not be negative")
        if self.decode_slack is not None and self.decode_slack < 0:
            raise InputError("decode_slack must not be negative")
        if self.kv_dtype and self.decode_slack is not None:
            raise InputError(
                f"{self.name} evicts while decoding, and quantised entries are not evicted from: "
                "leave out kv_dtype, or set decode_slack to null in YAML (None in Python)"
            )
        self._check_parts()

    @property
    def scorer(self) -> Scorer:
        """How important each entry is."""
        raise InputError(f"{type(self).__name__} must define the property scorer")

    @property
    def allocator(self) -> Allocator:
        """How many entries each head keeps."""
        return Equal()

    @property
    def selector(self) -> Selector:
        """Which entries these are."""
        return TopK()

    @staticmethod
    def default_min_eviction_seqlen(budget: int | None) -> int:
        """That of NACL's release, and 0 beside a budget in entries."""
        return 2048 if budget is None else 0

    def shape(
        self, tokens: int, question_tokens: int | None = None, prefix_tokens: int = 0
    ) -> PromptShape:
        """What this policy's parts are told of a prompt of ``tokens`` tokens."""
        keep = self.keep_ratio.exact if self.budget is None else Fraction(self.budget, tokens)
        return PromptShape(tokens, min(keep, Fraction(1)), question_tokens, prefix_tokens)

    def entries(self, tokens: int) -> int:
        """Entries per kv head, on average, that are kept of a prompt of ``tokens`` tokens."""
        if tokens <= self.min_eviction_seqlen:
            return tokens
        return self.shape(tokens).entries

    def _default(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _check_parts(self) -> None:
        for name, contract in PARTS.items():
            part = getattr(self, name)
            if not isinstance(part, contract):
                raise InputError(
                    f"the {name} of {self.name} must be a kvevict.methods.{contract.__name__}, "
                    f"not a {type(part).__name__}"
                )
            check_frozen(type(part))
        if self.scorer.prompt_only and self.decode_slack is not None:
            raise InputError(
                f"{type(self.scorer).__name__} scores a prompt alone, and {self.name} cannot go on "
                "evicting while decoding: leave decode_slack out"
            )
        if self.allocator.scope == "model" and not self.selector.takes_highest:
            raise InputError(
                "a model-wide allocation ranks entries by importance alone: it goes with a "
                f"selector that takes the highest, as top_k does, not with a "
                f"{type(self.selector).__name__}"
            )


@dataclass(frozen=True)
class Composition(Policy):
    """Any three parts as one policy.

    >>> Composition(name="mine", scorer=SnapKV().scorer, allocator=LayerShared(), keep_ratio=0.1)

    Attributes:
        name: what results are filed under.
        scorer, allocator, selector: the parts.
    """

    listed: ClassVar[bool] = False

    name: str = ""
    scorer: Optional[Scorer] = None
    allocator: Allocator = Equal()
    selector: Selector = TopK()

    @classmethod
    def of(cls, policy: Policy, name: str, **parts: Settings) -> Composition:
        """``policy`` under another name, with some of its parts replaced."""
        common = {each.name: getattr(policy, each.name) for each in fields(Policy)}
        parts = {**{role: getattr(policy, role) for role in PARTS}, **parts}
        return cls(**common, **parts, name=name)
