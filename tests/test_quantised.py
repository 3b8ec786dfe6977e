"""A cache in few bits, in both frameworks: how far numbers move, how many bytes they take."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import InputError
from kvevict.attention.cached import attend_cached
from kvevict.cache import KVCache, LayerCache
from kvevict.quantised import BITS, GROUP, KV_DTYPES, Quantised, entry_bytes
from tests.attention import numpy_attention as dense

LENGTHS = [[3, 3, 3], [64, 128], [65, 1, 1, 200], [0, 130], [0, 0], [7, 0], [70]]


@pytest.fixture(scope="module", params=["paddle", "torch"])
def ns(request):
    pytest.importorskip(request.param)
    return import_module(request.param)


def tensor(ns, x: np.ndarray):
    return (ns.to_tensor if ns.__name__ == "paddle" else ns.from_numpy)(x)


def layer_of(ns, lengths: list[int], kv_dtype: str, spread: float = 1.0, head_dim: int = 8):
    """A quantised layer, and the keys and values that it was made of."""
    draw = np.random.default_rng([*lengths, head_dim])
    keys, values = draw.normal(size=(2, sum(lengths), head_dim)).astype(np.float32)
    keys *= spread ** np.arange(head_dim, dtype=np.float32)  # channels of unlike size
    layer = LayerCache(tensor(ns, keys), tensor(ns, values), [*lengths])
    layer.quantise(kv_dtype)
    return layer, keys, values


def by_head(rows: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(lengths)[:-1])


def held(layer: LayerCache) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Keys and values as they are attended to, head by head."""
    runs = [(k.numpy(), v.numpy()) for _, k, v in layer.runs()]
    return [k for ks, _ in runs for k in ks], [v for _, vs in runs for v in vs]


def bound(kv_dtype: str, x: np.ndarray, axis: int) -> np.ndarray:
    """The furthest that each number may have moved within a group along ``axis``.

    Half a step, and what rounding scale and low to float16 makes of that at the edges.
    """
    largest = np.abs(x).max(axis, keepdims=True)
    rounded = 2.0**-10 * largest + 2.0**-14
    if kv_dtype == "fp8":
        return np.maximum(np.abs(x) * 2.0**-4, largest / 448 * 2.0**-10) + rounded
    if kv_dtype == "int8":
        return largest / 127 / 2 + rounded
    span = x.max(axis, keepdims=True) - x.min(axis, keepdims=True)
    return span / (2 ** BITS[kv_dtype] - 1) / 2 + 3 * rounded


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_heads_by_turns_are_heads_at_once(ns, kv_dtype, monkeypatch) -> None:
    whole, *_ = layer_of(ns, [70] * 5, kv_dtype)
    monkeypatch.setattr("kvevict.quantised.AT_A_TIME", 150)
    parts, *_ = layer_of(ns, [70] * 5, kv_dtype)
    for name, tensor in whole.quantised.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), parts.quantised.tensors[name].numpy())


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    kv_dtype=st.sampled_from(KV_DTYPES),
    head_dim=st.sampled_from([4, 16]),
    spread=st.sampled_from([0.1, 1.0, 1.7]),
)
def test_numbers_move_by_half_a_step_at_most(ns, lengths, kv_dtype, head_dim, spread) -> None:
    layer, keys, values = layer_of(ns, lengths, kv_dtype, spread, head_dim)
    got_keys, got_values = held(layer)
    for head, (k, v) in enumerate(zip(by_head(keys, lengths), by_head(values, lengths))):
        assert got_keys[head].shape == k.shape and got_values[head].shape == v.shape
        for start in range(0, len(k), GROUP):
            group = slice(start, start + GROUP)
            moved = np.abs(got_keys[head][group] - k[group])
            assert (moved <= bound(kv_dtype, k[group], 0)).all()
        if len(v):
            assert (np.abs(got_values[head] - v) <= bound(kv_dtype, v, 1)).all()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_bytes_are_counted_with_scales(ns, lengths, kv_dtype) -> None:
    head_dim, groups = 16, sum(-(-n // GROUP) for n in lengths)
    layer, *_ = layer_of(ns, lengths, kv_dtype, head_dim=head_dim)
    codes = 2 * sum(lengths) * head_dim * BITS[kv_dtype] // 8
    scales = 2 * (groups * head_dim + sum(lengths)) * (1 if BITS[kv_dtype] == 8 else 2)
    assert layer.nbytes == codes + scales
    if ns.__name__ == "torch":  # nothing is a view of more
        own = layer.quantised.tensors.values()
        assert sum(x.untyped_storage().nbytes() for x in own) == layer.nbytes
    layer.reserve(5)
    assert layer.nbytes == codes + scales + 2 * len(lengths) * 5 * head_dim * 4
    if all(n and n % GROUP == 0 for n in lengths):
        assert codes + scales == sum(lengths) * entry_bytes(kv_dtype, head_dim, 4)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("x", [0.0, 3.0, -1e-9, 7e4, -1e30], ids=str)
def test_numbers_that_are_all_the_same(ns, kv_dtype, x) -> None:
    """Also where a scale in float16 would be zero or infinite: then the nearest that there is."""
    keys = tensor(ns, np.full((70, 4), x, np.float32))
    layer = LayerCache(keys, keys, [70])
    layer.quantise(kv_dtype)
    most = 65504.0 * {"int8": 127, "fp8": 448, "int4": 16, "int2": 4}[kv_dtype]
    least = -most if BITS[kv_dtype] == 8 else -65504.0
    for got in (*held(layer)[0], *held(layer)[1]):
        np.testing.assert_allclose(got, np.clip(x, least, most), rtol=1e-3, atol=1e-5)


def test_int8_is_the_nearest_code(ns) -> None:
    layer, keys, values = layer_of(ns, [100], "int8")
    scale = (np.abs(values).max(1, keepdims=True) / np.float32(127)).astype(np.float16)
    codes = np.rint(values / scale.astype(np.float32)).astype(np.int8)
    np.testing.assert_array_equal(layer.quantised.values.numpy(), codes)
    np.testing.assert_array_equal(layer.quantised.value_scales.numpy(), scale[:, 0])
    scale = (np.abs(keys[64:]).max(0) / np.float32(127)).astype(np.float16)
    np.testing.assert_array_equal(layer.quantised.key_scales.numpy()[1], scale)


def test_fp8_is_e4m3() -> None:
    """Every number of it, whatever is halfway between two, and their neighbours."""
    torch = pytest.importorskip("torch")
    from kvevict.quantised import _e4m3, _e4m3_numbers

    every = torch.arange(256, dtype=torch.uint8)
    numbers = every.view(torch.float8_e4m3fn).float()
    finite = numbers.isfinite()
    assert torch.equal(_e4m3_numbers(every)[finite], numbers[finite])
    ordered = numbers[finite].sort().values
    x = torch.cat([ordered, (ordered[1:] + ordered[:-1]) / 2])
    x = torch.cat([x, *(x.nextafter(torch.tensor(end)) for end in (-449.0, 449.0))])
    x = x.clamp(-448, 448)
    assert torch.equal(
        _e4m3(x).view(torch.float8_e4m3fn).float(), x.to(torch.float8_e4m3fn).float()
    )


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("new", [1, 5])
def test_attention_is_that_over_the_numbers(ns, lengths, kv_dtype, new) -> None:
    layer, *_ = layer_of(ns, lengths, kv_dtype)
    draw = np.random.default_rng(new)
    tails = draw.normal(size=(2, len(lengths), 3 + new, 8)).astype(np.float32)
    layer.append(*(tensor(ns, x) for x in tails))
    q = (draw.normal(size=(2 * len(lengths), new, 8)) * 2).astype(np.float32)
    out, _ = attend_cached(tensor(ns, q), layer)
    for head, prefix in enumerate(zip(*held(layer))):
        k, v = (np.concatenate([x, tail[head]]) for x, tail in zip(prefix, tails))
        own = slice(2 * head, 2 * head + 2)
        expected = dense.output(q[own], k[None], v[None])
        np.testing.assert_allclose(out[own].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_quantised_prefix_is_shared_and_stays_as_it_is(ns) -> None:
    layer, *_ = layer_of(ns, [70, 3], "int4")
    cache = KVCache([layer], 70)
    assert cache.fork().layers[0].quantised is layer.quantised
    assert cache.entries == 73
    with pytest.raises(ValueError, match="stays as it is"):
        layer.keep(tensor(ns, np.array([0])), [1, 0])
    with pytest.raises(ValueError, match="stays as it is"):
        layer.quantise("int8")


def test_a_head_dim_that_fills_no_bytes_is_refused(ns) -> None:
    keys = tensor(ns, np.ones((1, 5, 6), np.float32))
    with pytest.raises(InputError, match="int2 cannot pack a head_dim of 6"):
        Quantised.of("int2", [(keys, keys)])
