"""The full cache: what eviction is measured against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Optional

from ..budget import Ratio
from .base import Scorer
from .policy import Policy
from .streamingllm import Recency


@dataclass(frozen=True)
class Full(Policy):
    """Keep everything."""

    name: ClassVar[str] = "full"
    default_keep_ratio: ClassVar[float] = 1.0

    keep_ratio: Optional[Ratio] = field(init=False, default=None)
    budget: Optional[int] = field(init=False, default=None)

    @property
    def scorer(self) -> Scorer:
        return Recency()
