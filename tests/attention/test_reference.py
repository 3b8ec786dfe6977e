"""The dense reference against NumPy: what the fast backends are held to must itself be right."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from kvevict.attention import ColumnStatistic
from tests.attention import numpy_attention as dense
from tests.attention.reference import attend


@pytest.mark.parametrize("rows", [None, 1, 5, 40])
@pytest.mark.parametrize(("group", "tokens", "keys"), [(1, 9, 9), (3, 13, 13), (2, 6, 17)])
def test_reference(group: int, tokens: int, keys: int, rows: int | None) -> None:
    rng = np.random.default_rng([group, tokens, keys])
    q = rng.normal(size=(2, 2 * group, tokens, 4)) * 2
    k, v = rng.normal(size=(2, 2, 2, keys, 4))
    statistics = tuple(
        ColumnStatistic(reduce, rows, per_kv_head)
        for reduce in ("sum", "sum_of_squares", "count_below_mean")
        for per_kv_head in (True, False)
    )
    result = attend(*(paddle.to_tensor(x) for x in (q, k, v)), statistics)
    for b in range(2):
        np.testing.assert_allclose(result.out[b].numpy(), dense.output(q[b], k[b], v[b]))
        np.testing.assert_allclose(result.lse[b].numpy(), dense.lse(q[b], k[b]))
        a = dense.weights(q[b], k[b])
        for s in statistics:
            expected = dense.column(a, s.reduce, s.rows, group if s.per_kv_head else None)
            np.testing.assert_allclose(result.columns[s][b].numpy(), expected, err_msg=str(s))


def test_shapes_that_do_not_fit() -> None:
    x = paddle.ones([1, 3, 5, 4])
    with pytest.raises(ValueError, match="kv_heads dividing query_heads"):
        attend(x, x[:, :2], x[:, :2])
    with pytest.raises(ValueError, match="tokens at most keys"):
        attend(x, x[:, :, :4], x[:, :, :4])
    with pytest.raises(ValueError, match="not"):
        attend(x, x, x[:, :, :, :2])
