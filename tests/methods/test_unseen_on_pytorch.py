"""The methods for questions that are not known yet, held to the same brute force on PyTorch."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="PyTorch has an environment of its own")

from tests.methods.test_defensivekv import test_keeps_the_sure_ones_and_the_worst_cases
from tests.methods.test_expected_attention import (
    test_a_large_mean_hides_no_covariance,
    test_keeps_what_its_formula_says,
)
from tests.methods.test_keydiff import test_keeps_the_keys_unlike_their_mean
from tests.methods.test_kvzip import test_ranks_over_the_whole_model

__all__ = [
    "test_a_large_mean_hides_no_covariance",
    "test_keeps_the_keys_unlike_their_mean",
    "test_keeps_the_sure_ones_and_the_worst_cases",
    "test_keeps_what_its_formula_says",
    "test_ranks_over_the_whole_model",
]
