"""The full cache: what eviction is measured against."""

from __future__ import annotations

from .base import Equal, Policy, TopK
from .streamingllm import Recency


def Full(**common) -> Policy:
    """Keep everything."""
    return Policy("full", Recency(), Equal(), TopK(), keep_ratio=1.0, **common)
