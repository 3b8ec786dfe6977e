"""Eviction methods by name, and how to compose new ones."""

from __future__ import annotations

from ..attention import ColumnStatistic, QueryMoments, RepeatedChunks, WindowRows
from .adakv import AdaKV
from .base import Allocator, LayerView, PromptShape, Scorer, Selector
from .criticalkv import CriticalAdaKV, CriticalKV
from .defensivekv import DefensiveKV, LayerDefensiveKV
from .expected_attention import ExpectedAttention
from .fade import Fade
from .full import Full
from .h2o import H2O
from .keydiff import KeyDiff
from .keynorm import KeyNorm
from .kvzip import KVzip
from .laprox import LaProx
from .nacl import NACL
from .nacl_paper import NACLPaper
from .policy import PARTS, Composition, Policy
from .pyramidkv import PyramidKV
from .random import Random
from .registry import METHODS, VARIANTS, build, describe
from .scissorhands import Scissorhands
from .snapkv import SnapKV
from .streamingllm import StreamingLLM
from .tova import TOVA

__all__ = [
    "H2O",
    "METHODS",
    "NACL",
    "PARTS",
    "TOVA",
    "VARIANTS",
    "AdaKV",
    "Allocator",
    "ColumnStatistic",
    "Composition",
    "CriticalAdaKV",
    "CriticalKV",
    "DefensiveKV",
    "ExpectedAttention",
    "Fade",
    "Full",
    "KVzip",
    "KeyDiff",
    "KeyNorm",
    "LaProx",
    "LayerDefensiveKV",
    "LayerView",
    "NACLPaper",
    "Policy",
    "PromptShape",
    "PyramidKV",
    "QueryMoments",
    "Random",
    "RepeatedChunks",
    "Scissorhands",
    "Scorer",
    "Selector",
    "SnapKV",
    "StreamingLLM",
    "WindowRows",
    "build",
    "describe",
]
