"""The backends of attention against the dense reference in float64, in many blocks and few."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

from kvevict import cores
from kvevict.attention import ColumnStatistic, WindowRows, attend, blockwise, cpu
from tests.attention import numpy_attention as dense
from tests.attention import reference
from tests.rounding import assert_same

BACKENDS = (cpu, blockwise)
ROWS = (None, 1, 7, 1000)
STATISTICS = tuple(
    ColumnStatistic(reduce, rows, per_kv_head)
    for reduce in ("sum", "sum_of_squares", "count_below_mean")
    for rows in ROWS
    for per_kv_head in (True, False)
)


@pytest.fixture()
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few rows, a few passes each: every length here takes several, and ends in one."""
    block_size(monkeypatch, 5)
    monkeypatch.setattr(cores, "CHUNK", 60)
    monkeypatch.setattr(cpu, "PIECES", 3)


def block_size(patch: pytest.MonkeyPatch, rows: int) -> None:
    patch.setattr(cpu, "ROWS", 2 * rows)  # those of all heads of a group
    patch.setattr(blockwise, "BLOCK", 1)
    patch.setattr(blockwise, "FEWEST_ROWS", rows)
    patch.setattr(blockwise, "FEWEST_COLUMN_ROWS", rows)


def draw(seed, batch, kv_heads, group, tokens, keys, head_dim=8, scale=2.0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, kv_heads * group, tokens, head_dim)) * scale
    k, v = rng.normal(size=(2, batch, kv_heads, keys, head_dim))
    return [x.astype(np.float32) for x in (q, k, v)]


def tensors(arrays, dtype="float32"):
    return [paddle.to_tensor(x.astype(dtype)) for x in arrays]


def check_columns(columns, expected, q, k) -> None:
    """Sums to float32's precision; counts exactly, but for weights that tie with the mean."""
    group = q.shape[1] // k.shape[1]
    for statistic, column in columns.items():
        got, want = column.numpy(), expected[statistic].numpy()
        assert got.shape == want.shape
        assert got.dtype == np.float32
        if statistic.reduce != "count_below_mean":
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-5, err_msg=str(statistic))
            continue
        per = group if statistic.per_kv_head else None
        ties = [dense.near_mean(dense.weights(*x), statistic.rows, per) for x in zip(q, k)]
        assert (np.abs(got - want) <= np.stack(ties)).all(), statistic


def check(arrays) -> None:
    expected = reference.attend(*tensors(arrays, "float64"), STATISTICS)
    for backend in BACKENDS:
        result = backend.attend(*tensors(arrays), STATISTICS)
        assert set(result.columns) == set(STATISTICS)
        np.testing.assert_allclose(result.out.numpy(), expected.out.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.lse.numpy(), expected.lse.numpy(), rtol=1e-5, atol=1e-5)
        check_columns(result.columns, expected.columns, *arrays[:2])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("group", range(1, 9))
def test_group_sizes(group: int) -> None:
    check(draw(group, 1, 2, group, 33 + group, 33 + group))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6, 10, 11, 64])
def test_lengths_around_the_block(tokens: int) -> None:
    check(draw(tokens, 2, 1, 2, tokens, tokens))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("tokens", "keys"), [(1, 30), (5, 30), (12, 30), (29, 30)])
def test_queries_of_the_last_keys_only(tokens: int, keys: int) -> None:
    check(draw(tokens, 2, 2, 3, tokens, keys))


def test_one_block_of_its_own_size() -> None:
    check(draw(0, 2, 2, 4, 150, 150))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(0, 20),
    st.integers(1, 9),
)
def test_any_shape(seed, batch, kv_heads, group, tokens, before, rows) -> None:
    with pytest.MonkeyPatch.context() as patch:
        block_size(patch, rows)
        check(draw(seed, batch, kv_heads, group, tokens, tokens + before))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [10, 1e2, 1e4])
def test_large_scores_do_not_overflow(scale: float, backend) -> None:
    """Of tens to thousands, of either sign: weights near zero and one, and a future far above."""
    arrays = draw(3, 1, 2, 2, 48, 48, scale=scale)
    q, k, v = tensors(arrays)
    result = backend.attend(q, k, v, STATISTICS)
    expected = reference.attend(*tensors(arrays, "float64"), STATISTICS)
    for got in (result.out, result.lse, *result.columns.values()):
        assert bool(got.isfinite().all())
    # Float32 rounds a score of 10⁴ by 10⁻³, and so its weight.
    np.testing.assert_allclose(result.lse.numpy(), expected.lse.numpy(), rtol=1e-5)
    np.testing.assert_allclose(result.out.numpy(), expected.out.numpy(), atol=1e-5 * scale)


def test_threads_share_the_work_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(draw(5, 1, 3, 3, 700, 700, head_dim=64))
    results = []
    for threads in (1, 2, 5):
        with ThreadPoolExecutor(threads) as pool:
            monkeypatch.setattr(cores, "_threads", lambda process: (pool, Lock()))
            results.append(attend(q, k, v, STATISTICS))
    for other in results[1:]:
        close = {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(other.out.numpy(), results[0].out.numpy(), **close)
        np.testing.assert_allclose(other.lse.numpy(), results[0].lse.numpy(), **close)
        for statistic, column in other.columns.items():
            most = 1 if statistic.reduce == "count_below_mean" else 1e-4  # a weight at the mean
            gap = np.abs(column.numpy() - results[0].columns[statistic].numpy()).max()
            assert gap <= most, statistic


def test_calls_that_overlap_leave_numpy_its_threads() -> None:
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = [library["num_threads"] for library in ThreadpoolController().info()]
        arrays = tensors(draw(6, 1, 2, 2, 300, 300))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: attend(*arrays), range(40)))
        assert [library["num_threads"] for library in ThreadpoolController().info()] == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_row_sees_itself_alone_however_high_the_future(backend) -> None:
    q, k = paddle.ones([1, 1, 40, 4]), paddle.zeros([1, 1, 40, 4])
    k[:, :, 1:] = 1000.0
    result = backend.attend(q, k, k + 1.0, (ColumnStatistic("sum"),))
    np.testing.assert_array_equal(result.out[0, 0, 0].numpy(), 1.0)
    np.testing.assert_allclose(result.lse[0, 0, 0].item(), 0.0)
    np.testing.assert_allclose(result.columns[ColumnStatistic("sum")][0, 0, 0].item(), 1.0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("group", [1, 3])
def test_columns_from_the_log_sum_exp(group: int) -> None:
    arrays = draw(group, 2, 2, group, 37, 37)
    q, k, v = tensors(arrays)
    lse = attend(q, k, v).lse
    expected = reference.attend(*tensors(arrays, "float64"), STATISTICS)
    columns = blockwise.columns_from_lse(q, k, lse, STATISTICS)
    check_columns(columns, expected.columns, *arrays[:2])


def test_large_scores_of_half_precision_are_not_rounded_again() -> None:
    """In bfloat16, scores of 100 are half a unit apart: weights would be off by a quarter."""
    halves = [x.astype("bfloat16") for x in tensors(draw(4, 1, 2, 2, 90, 90, 128, scale=30.0))]
    q, k, v = (x.astype("float64") for x in halves)
    sums, window = ColumnStatistic("sum", 20, False), WindowRows(20)
    expected = reference.attend(q, k, v, (sums,))
    lse = expected.lse.astype("float32")
    got = blockwise.columns_from_lse(*halves[:2], lse, (sums,))[sums]
    rows = blockwise.window_rows(*halves[:2], lse, window)
    for columns in (got, rows.sum(2)):
        np.testing.assert_allclose(columns.numpy(), expected.columns[sums].numpy(), 1e-3, 1e-6)


def test_nothing_reported_unasked() -> None:
    q, k, v = tensors(draw(1, 1, 1, 1, 20, 20))
    result, asked = attend(q, k, v), attend(q, k, v, STATISTICS)
    assert result.columns == {}
    assert_same(result.out, asked.out)


GROWTH = """
from kvevict import environment
environment.configure()
import json, resource, paddle
from kvevict import cores
from kvevict.attention import ColumnStatistic, attend

def peak(n):
    q, k, v = (paddle.randn([1, heads, n, 16]) for heads in (2, 1, 1))
    attend(q, k, v, (ColumnStatistic("sum"), ColumnStatistic("count_below_mean", rows=64)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
peak(500)
print(json.dumps([peak(n) for n in (2000, 4000, 8000)]))
"""


def test_memory_grows_with_the_length_and_not_its_square() -> None:
    src = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], cwd=src, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    # One head's weights at 8,000 tokens would be 244 MiB; a thread's block and mask are 10.
    assert peaks[2] - peaks[0] < 40, peaks
