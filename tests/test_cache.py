from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict.cache import TAIL, KVCache, LayerCache
from kvevict.ops import nonzero

D = 4
ENTRY = 2 * D * 4  # bytes of one entry: keys and values in float32


def random(*shape: int) -> tuple[np.ndarray, paddle.Tensor]:
    array = np.random.default_rng(shape).normal(size=shape).astype(np.float32)
    return array, paddle.to_tensor(array)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 30), st.data())
def test_compact_keeps_what_the_mask_says(heads: int, n: int, data: st.DataObject) -> None:
    rows = st.lists(st.booleans(), min_size=n, max_size=n)
    mask = np.array(data.draw(st.lists(rows, min_size=heads, max_size=heads)))
    (k, keys), (v, values) = random(heads, n, D), random(heads, n, D)
    layer = LayerCache.compact(keys, values + 1, record=True)
    rows = nonzero(paddle.to_tensor(mask.reshape(-1)), int(mask.sum()))
    layer.keep(rows, mask.sum(1).tolist())
    assert layer.lengths == mask.sum(1).tolist()
    np.testing.assert_array_equal(layer.keys.numpy(), k[mask])
    np.testing.assert_array_equal(layer.values.numpy(), v[mask] + 1)
    np.testing.assert_array_equal(layer.positions.numpy(), np.nonzero(mask)[1])
    assert layer.nbytes == mask.sum() * ENTRY

    count = int(mask.sum())
    again = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    left = mask.copy()
    left[mask] = again
    layer.keep(paddle.to_tensor(np.flatnonzero(again)), left.sum(1).tolist())
    np.testing.assert_array_equal(layer.keys.numpy(), k[left])
    np.testing.assert_array_equal(layer.positions.numpy(), np.nonzero(left)[1])


def test_without_a_mask_all_is_kept() -> None:
    k, keys = random(2, 5, D)
    layer = LayerCache.compact(keys, keys, record=True)
    assert layer.lengths == [5, 5]
    np.testing.assert_array_equal(layer.keys.numpy(), k.reshape(-1, D))
    assert layer.positions.tolist() == [*range(5)] * 2


def test_runs_join_heads_of_equal_length() -> None:
    k, keys = random(12, D)
    layer = LayerCache(keys, keys + 1, [2, 2, 0, 5, 1, 1, 1])
    runs = [(heads, list(x.shape)) for heads, x, _ in layer.runs()]
    assert runs == [
        (slice(0, 2), [2, 2, D]),
        (slice(2, 3), [1, 0, D]),
        (slice(3, 4), [1, 5, D]),
        (slice(4, 7), [3, 1, D]),
    ]
    np.testing.assert_array_equal(
        np.concatenate([x.reshape([-1, D]) for _, x, _ in layer.runs()]), k
    )
    values = np.concatenate([x.reshape([-1, D]) for *_, x in layer.runs()])
    np.testing.assert_array_equal(values, k + 1)


def test_tail_is_written_in_place() -> None:
    k, keys = random(2, 3, D)
    layer = LayerCache.compact(keys, keys)
    more, tensors = random(2, 10, D)
    layer.reserve(10)
    buffer = layer.tail_keys
    assert layer.nbytes == (6 + 2 * 10) * ENTRY
    layer.append(tensors[:, :1], tensors[:, :1])
    layer.append(tensors[:, 1:10], tensors[:, 1:10])
    assert layer.tail_keys is buffer
    assert layer.tail == 10
    np.testing.assert_array_equal(layer.tail_keys.numpy(), more)
    np.testing.assert_array_equal(layer.keys.numpy(), k.reshape(-1, D))


def test_tail_grows_where_nothing_was_reserved() -> None:
    _, keys = random(2, 3, D)
    layer = LayerCache.compact(keys, keys)
    more, tensors = random(2, 3 * TAIL, D)
    sizes = set()
    for i in range(0, 3 * TAIL, 2):
        layer.append(tensors[:, i : i + 2], tensors[:, i : i + 2] + 1)
        sizes.add(layer.tail_keys.shape[1])
    np.testing.assert_array_equal(layer.tail_keys[:, : layer.tail].numpy(), more)
    np.testing.assert_array_equal(layer.tail_values[:, : layer.tail].numpy(), more + 1)
    assert sizes == {TAIL, 2 * TAIL, 3 * TAIL}  # not once for each token


def test_the_tail_settles_behind_each_head() -> None:
    (k, keys), (more, tensors) = random(9, D), random(4, 7, D)
    lengths = [3, 3, 0, 3]
    layer = LayerCache(keys, keys + 1, lengths)
    layer.append(tensors, tensors + 1)
    layer.merge_tail()
    heads = np.split(k, np.cumsum(lengths)[:-1])
    expected = np.concatenate([x for pair in zip(heads, more) for x in pair])
    np.testing.assert_array_equal(layer.keys.numpy(), expected)
    np.testing.assert_array_equal(layer.values.numpy(), expected + 1)
    assert (layer.lengths, layer.tail) == ([10, 10, 7, 10], 0)


def test_forks_share_the_prefix_and_not_the_tail() -> None:
    _, keys = random(2, 3, D)
    cache = KVCache([LayerCache.compact(keys, keys)], seen=3)
    cache.reserve(4)
    forks = [cache.fork(), cache.fork()]
    assert forks[0].layers[0].keys is cache.layers[0].keys
    more, tensors = random(2, 2, D)
    for sign, fork in zip((1, -1), forks):
        fork.layers[0].append(tensors * sign, tensors)
    np.testing.assert_array_equal(forks[0].layers[0].tail_keys[:, :2].numpy(), more)
    np.testing.assert_array_equal(forks[1].layers[0].tail_keys[:, :2].numpy(), -more)
    assert cache.layers[0].tail == 0
    assert [cache.entries, forks[0].entries, cache.seen, forks[1].seen] == [6, 10, 3, 3]
    with pytest.raises(ValueError, match="without decoded tokens"):
        forks[0].fork()
