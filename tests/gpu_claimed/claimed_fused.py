"""Paddle's fused operations on tensors that claim a GPU without Triton.

Run by pytest in a process of its own: see test_paddle_claimed.py.
"""

from __future__ import annotations

import claimed
import installed
import numpy as np
import paddle
import pytest
from paddle import _C_ops
from recording import Graph

from kvevict import backends, build, ops
from kvevict.backends.paddle import arithmetic
from kvevict.engine import Batch, prefill
from tests.evaluation import tiny

claimed.claim()
ops.has_triton = lambda: False
tiny.HEAD_DIM = 64  # that flash attention takes
LIMIT = 0.01  # of logits in float16


def distance(got, expected) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny.write_llama(tmp_path_factory.mktemp("model") / "tiny", scale=0.1)
    return backends.load(path, dtype="float16", device="gpu")


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 1e-3), ("bfloat16", 6e-3)])
def test_fused_operations_beside_float64(dtype, limit):
    """Random inputs of one token and of several, at shared positions and at their own."""
    parts = set()
    for part, inputs in arithmetic._trials(dtype, 96, (6, 2), 32):
        parts.add(part)
        for got, want in zip(arithmetic._run(arithmetic.FUSED, part, inputs), exact(part, inputs)):
            assert str(got.dtype).endswith(dtype)
            assert distance(wide(got), want) < limit, part
    assert parts == {*arithmetic.NAMES}


def exact(part: str, inputs: tuple) -> list[np.ndarray]:
    if part == "rotate":
        q, k, cos, sin = map(wide, inputs)
        cos, sin = (x.reshape(-1, 1, *q.shape[2:]) for x in (cos, sin))
        halves = [np.split(x, 2, -1) for x in (q, k)]
        turned = [np.concatenate([-second, first], -1) for first, second in halves]
        return [x * cos + other * sin for x, other in zip((q, k), turned)]
    if part == "gate":
        x, y = map(wide, inputs)
        return [x / (1 + np.exp(-x)) * y]
    layer, *rows = inputs
    x = sum(map(wide, rows))
    scale = np.sqrt((x**2).mean(-1, keepdims=True) + layer.variance_epsilon)
    normed = x / scale * wide(layer.weight)
    return [normed] if part == "norm" else [x, normed]


def wide(x: paddle.Tensor) -> np.ndarray:
    return x.astype("float32").numpy().astype(np.float64)


def neighbours(*args):
    """RoPE on pairs of neighbours, whatever was asked for."""
    return claimed.operators.fused_rotary_position_embedding(*args[:6], True, *args[7:])


def without_sum(x, bias, residual, *rest, norm=_C_ops.fused_rms_norm_quant):
    """The norm of ``x`` alone, whatever was to be added."""
    return norm(x, bias, None, *rest)[0], x if residual is None else x + residual


NORM, ROPE = "fused_rms_norm_quant", "fused_rotary_position_embedding"
FAULTS = {
    "absent": (NORM, None, ["norm", "add_norm"]),
    "no sum": (NORM, without_sum, ["add_norm"]),
    "other pairs": (ROPE, neighbours, ["rotate"]),
    "no gate": ("swiglu", lambda x, y: x * y, ["gate"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_an_operation_that_is_not_as_it_should_be_is_left_out(model, monkeypatch, capfd, case):
    name, fault, parts = FAULTS[case]
    fused, ids, full = model.decoder(), [5, 9, 200, 31, 7], [build("full")]
    assert fused._arithmetic == arithmetic.FUSED
    expected = prefill(fused, ids, full)[0].logits.numpy()
    if fault is None:
        monkeypatch.delattr(_C_ops, name)
    else:
        monkeypatch.setattr(_C_ops, name, fault)
    arithmetic._fused.cache_clear()
    try:
        decoders = [model.decoder() for _ in range(2)]
    finally:
        arithmetic._fused.cache_clear()
    left_out = {*parts, "tables"} if "rotate" in parts else {*parts}
    for decoder in decoders:
        chosen = decoder._arithmetic._asdict()
        assert {part for part, own in chosen.items() if own in arithmetic.PLAIN} == left_out
    told = capfd.readouterr().err.splitlines()
    words = [f"going on without Paddle's {arithmetic.NAMES[part]}, slower: " for part in parts]
    assert len(told) == len(words) and all(map(str.startswith, told, words)), told
    assert distance(prefill(decoders[0], ids, full)[0].logits.numpy(), expected) < LIMIT


def test_sequences_side_by_side_at_their_own_positions(model):
    """One table of RoPE for a batch: each goes on as it does alone."""
    prompts = [np.random.default_rng(n).integers(0, 250, n).tolist() for n in (12, 30, 30)]
    sessions = [prefill(model.decoder(), ids, [build("full")])[0] for ids in prompts]
    alone = [session.fork().extend([77]).numpy() for session in sessions]
    together = Batch(sessions).step([77] * len(sessions)).numpy()
    assert max(map(distance, together, alone)) < LIMIT


def test_what_a_token_launches(model):
    """Without kernels a layer's attention is eleven operations, and the rest of it thirteen."""
    decoder = model.decoder()
    session = prefill(decoder, [5] * 40, [build("full")])[0]
    session.reserve(8)
    hidden = decoder.embed([7])
    Graph.begin_capture_with_pool_id(hidden.place, 0, None)
    decoder.logits(session.extend_hidden(hidden))
    names = Graph.end_capture().launches
    assert [names.count(name) for name in (NORM, ROPE, "swiglu", "linear")] == [5, 2, 2, 14]
    assert len(names) <= 24 * tiny.LAYERS + 5


def test_the_check_of_a_gpu_names_what_is_fused(capfd):
    """The lines of scripts/check_gpu.sh that only a card sees."""
    assert installed._card(paddle) == 0
    told = capfd.readouterr().out
    assert f"device     {claimed.NAME}, compute capability (8, 0)" in told
    for dtype in ("bfloat16", "float16"):
        assert f"fused      in {dtype}: {', '.join(arithmetic.NAMES.values())}\n" in told


def test_a_repeated_context_goes_through_flash_attention(model, monkeypatch):
    """KVzip's second reading, by two calls a chunk: beside framework operations."""
    policy = build("kvzip", keep_ratio=0.3, min_eviction_seqlen=0, chunk_size=90)
    ids = [(i * i * 31 + 7 * i) % 250 + 2 for i in range(200)]

    def kept() -> list[set]:
        (session,) = prefill(
            model.decoder(), ids, [policy], record=True, repetition=model.repetition
        )
        found = []
        for layer in session.cache.layers:
            ends = np.cumsum(layer.lengths)[:-1]
            found += [set(own.tolist()) for own in np.split(layer.positions.numpy(), ends)]
        return found

    before = claimed.called["flash_attn"]
    got = kept()
    chunks, layers = 3, 2
    # Each layer's prompt, and of all but the last the chunks.
    assert claimed.called["flash_attn"] - before == layers + 2 * chunks * (layers - 1)
    monkeypatch.setattr("kvevict.attention.flash_applies", lambda q: False)
    expected = kept()
    same = sum(len(a & b) for a, b in zip(got, expected))
    assert same > 0.97 * sum(map(len, expected))
