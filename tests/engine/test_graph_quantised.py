"""Steps on the device over quantised caches, as test_cuda_graph.py has it of others."""

from __future__ import annotations

import pytest

from tests.kernels.dense import kernels, torch

pytest.importorskip("transformers", reason="graphs are of transformers' models")

from kvevict import build
from kvevict.engine import Batch, cuda_graph, decode, decode_together, prefill
from kvevict.engine.rows import OneByOne
from kvevict.engine.session import Session
from tests.engine.test_cuda_graph import (  # noqa: F401
    KINDS,
    assert_same_tails,
    by_loop,
    decoder,
    tokens,
)

TYPES = ("int8", "fp8")
MIXED = [("snapkv", "int8"), ("full", None), ("laprox", "fp8"), ("full", "int4"), ("adakv", "int8")]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """But for float16's rounding, which the kernels and plain code do in other places."""
    return torch.allclose(a.float(), b.float(), rtol=0.05, atol=0.05)


def session(decoder, method: str, kv_dtype: str | None, ids: list[int] | None = None) -> Session:  # noqa: F811
    ratio = {} if method == "full" else {"keep_ratio": 0.3}
    policy = build(method, kv_dtype=kv_dtype, min_eviction_seqlen=0, **ratio)
    return prefill(decoder, ids or tokens(1, 210), [policy])[0]


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch takes the kernels, as on a GPU that reads fp8."""
    monkeypatch.setattr("kvevict.engine.batch.attention_kernels", lambda keys: kernels)
    monkeypatch.setattr(
        "kvevict.engine.batch.reads", lambda kv_dtype, framework: kv_dtype in (None, *TYPES)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_dtype", TYPES)
def test_a_step_on_the_device_is_a_step_of_the_loop(decoder, kv_dtype: str, kind) -> None:  # noqa: F811
    one, other = (session(decoder, "laprox", kv_dtype) for _ in range(2))
    for own in (one, other):
        own.extend([7, 8])
        own.cache.reserve(2)
    for token in (3, 200, 41):
        expected = other.extend([token])
        assert close(kind([one]).step([token])[0], expected)
    assert_same_tails(one, other, close)


def test_rows_are_grouped_by_type(decoder, with_kernels) -> None:  # noqa: F811
    rows, alone = ([session(decoder, *each) for each in MIXED] for _ in range(2))
    batch = Batch(rows, cuda_graph.WORTH)
    got = batch.step([5, 6, 7, 8, 9])
    assert [own for own, _ in batch._parts] == [[3], [0, 4], [1], [2]]
    assert isinstance(batch._parts[0][1], OneByOne)
    assert set(batch._graphs) == {"int8", None, "fp8"}
    for i, twin in enumerate(alone):
        assert close(got[i], twin.extend([5 + i]))
    assert batch.leave(0) is rows[0]
    for graph in batch._graphs.values():
        graph._launch = None  # so that nothing is recorded, on a GPU either
    got = batch.step([1, 2, 3, 4])
    for i, twin in enumerate(alone[1:]):
        assert close(got[i], twin.extend([1 + i]))


@pytest.mark.gpu
@pytest.mark.parametrize("kv_dtype", TYPES)
def test_the_graph_is_the_loop_to_the_bit(decoder, monkeypatch, kv_dtype: str) -> None:  # noqa: F811
    one, other = (session(decoder, "laprox", kv_dtype) for _ in range(2))
    answer = decode(one, 70)
    assert answer == by_loop(monkeypatch, other, 70)
    assert torch.equal(one.logits, other.logits)
    assert_same_tails(one, other)


@pytest.mark.gpu
def test_a_batch_of_unlike_types_in_graphs_is_the_batch_in_the_loop(decoder, monkeypatch) -> None:  # noqa: F811
    one, other = ([session(decoder, *each) for each in MIXED] for _ in range(2))
    answers = decode_together(one, 40)
    assert answers == by_loop(monkeypatch, other, 40, do=decode_together)
