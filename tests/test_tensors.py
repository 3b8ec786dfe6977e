"""Numbers for the device, in whichever way they go there."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict.tensors import integers

paddle = pytest.importorskip("paddle")


@pytest.mark.parametrize(
    "values", [[7], [3, 3, 3], [3, 4, 3], [[1, 2], [1, 2]], np.full((2, 3), 5)], ids=str
)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_arrive_as_they_are(values, dtype) -> None:
    got = integers(values, getattr(paddle, dtype), like=paddle.ones([1]))
    assert got.dtype == getattr(paddle, dtype)
    np.testing.assert_array_equal(got.numpy(), np.array(values))


def test_equal_numbers_take_no_copy(monkeypatch) -> None:
    monkeypatch.delattr(paddle, "to_tensor")
    assert integers([9, 9], paddle.int64, like=paddle.ones([1])).tolist() == [9, 9]
