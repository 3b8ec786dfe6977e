"""A quantised cache beside any method, from the prompt to the answer, in both frameworks."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict import METHODS, InputError, build, evict, generate
from kvevict.cache import LayerCache
from kvevict.engine import Batch, decode, decode_together, memory, prefill
from kvevict.quantised import KV_DTYPES
from tests.engine.greedy import NEAR, alone, assert_same_tokens
from tests.engine.test_batch import REPETITION

IDS = [(i * i * 31 + 7 * i) % 254 + 2 for i in range(150)]
EVICT_LATER = ("h2o", "tova", "scissorhands")  # while decoding, unless told not to


def policy(method: str, kv_dtype: str | None, **size):
    size = {} if method == "full" else size or {"keep_ratio": 0.5}
    return build(method, kv_dtype=kv_dtype, decode_slack=None, min_eviction_seqlen=0, **size)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_is_quantised_and_nothing_else_changes(tiny_decoder, method: str) -> None:
    """The same entries as without, in codes of their own, whatever the allocation."""
    policies = [policy(method, kv_dtype) for kv_dtype in (None, *KV_DTYPES)]
    whole, *sessions = prefill(tiny_decoder, IDS, policies, record=True, repetition=REPETITION)
    for kv_dtype, session in zip(KV_DTYPES, sessions):
        for layer, exact in zip(session.cache.layers, whole.cache.layers):
            assert layer.lengths == exact.lengths
            assert layer.positions.tolist() == exact.positions.tolist()
            own = LayerCache(exact.keys, exact.values, exact.lengths)
            own.quantise(kv_dtype)
            for name, tensor in own.quantised.tensors.items():
                got = layer.quantised.tensors[name]
                np.testing.assert_array_equal(got.cpu().numpy(), tensor.cpu().numpy())
        assert session.cache.nbytes < whole.cache.nbytes
        assert session.cache.entries == whole.cache.entries
        gap = float((session.fork().extend([5]) - whole.fork().extend([5])).abs().max())
        assert gap < {"int8": 0.5, "fp8": 2.0}.get(kv_dtype, float("inf"))
        assert len(decode(session, 5)) == 5


def test_short_prompts_are_quantised_too(tiny_decoder) -> None:
    chosen = build("snapkv", keep_ratio=0.2, kv_dtype="int8")  # left whole below 2,048 tokens
    (session,) = prefill(tiny_decoder, IDS[:30], [chosen])
    assert session.cache.layers[0].kv_dtype == "int8"
    assert session.cache.layers[0].lengths == [30, 30]


def test_rows_of_unlike_types_side_by_side(tiny_decoder) -> None:
    rows = [("snapkv", "int8"), ("full", None), ("laprox", "int4"), ("full", "fp8"),
            ("adakv", "int8"), ("h2o", "int2")]  # fmt: skip

    def sessions():
        return [prefill(tiny_decoder, IDS, [policy(*row)])[0] for row in rows]

    expected = [alone(session, 8) for session in sessions()]
    for answer, (ids, gaps) in zip(decode_together(sessions(), 8), expected):
        assert_same_tokens(answer, ids, gaps)
    for session, (ids, gaps) in zip(sessions(), expected):
        assert_same_tokens(decode(session.fork(), 8), ids, gaps)
    batch, twins = Batch(sessions()), sessions()
    logits = batch.step([3, 4, 5, 6, 7, 8])
    for row, twin in enumerate(twins):
        assert float((logits[row] - twin.extend([3 + row])).abs().max()) < NEAR


def test_generate_takes_it_from_the_policy(tiny_decoder) -> None:
    chosen = policy("snapkv", "int8")
    prompts = [IDS[:40], IDS[3:90]]
    answers = generate(tiny_decoder, prompts, chosen, 6)
    for number, ids in enumerate(prompts):
        (session,) = prefill(tiny_decoder, ids, [chosen], number)
        assert answers[number] == decode(session, 6)


def test_what_a_sequence_takes_is_no_less_than_its_cache(tiny_decoder) -> None:
    needed = {}
    for kv_dtype in (None, *KV_DTYPES):
        chosen = policy("snapkv", kv_dtype)
        (session,) = prefill(tiny_decoder, IDS, [chosen])
        session.cache.reserve(12)
        needed[kv_dtype] = memory.needed_bytes(tiny_decoder, [chosen], len(IDS), 12)
        assert session.cache.nbytes < needed[kv_dtype]
    assert needed["int2"] < needed["int4"] < needed["int8"] == needed["fp8"] < needed[None]
    held = [memory.needed_bytes(tiny_decoder, [policy("laprox", t)], 150, 12)
            for t in (None, "int8")]  # fmt: skip
    assert held[0] < held[1]  # whole before the last layer, and then the codes beside it


@pytest.mark.parametrize("method", EVICT_LATER)
def test_eviction_while_decoding_is_refused(method: str) -> None:
    sentence = f"{method} evicts while decoding, and quantised entries are not evicted from"
    with pytest.raises(InputError, match=sentence):
        build(method, kv_dtype="int8")
    with pytest.raises(InputError, match="snapkv evicts while decoding"):
        build("snapkv", kv_dtype="fp8", decode_slack=4)


@pytest.mark.parametrize("word", ["int3", "INT8", 8, ""])
def test_other_types_are_refused(word) -> None:
    with pytest.raises(InputError, match="kv_dtype must be 'int8' or 'fp8' or 'int4' or 'int2'"):
        build("snapkv", kv_dtype=word)


@pytest.mark.parametrize("framework", ["paddle", "torch"])
def test_evict_takes_it_from_the_policy(request, framework: str) -> None:
    ns = pytest.importorskip(framework)
    if framework == "paddle":
        from tests.backends.test_paddle_generate import generate as answer

        model, ids = request.getfixturevalue("tiny_model"), ns.to_tensor([IDS])
    else:
        from tests.backends.torch_model import tiny

        model, ids = tiny(), ns.tensor([IDS])

        def answer(model, ids, max_new_tokens: int) -> list[int]:
            out = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
            return out[0, len(IDS) :].tolist()

    answers = []
    for kv_dtype in ("int8", None):
        with evict(model, policy("snapkv", kv_dtype)) as sessions:
            answers.append(answer(model, ids, max_new_tokens=3))
        assert {layer.kv_dtype for layer in sessions[0].cache.layers} == {kv_dtype}
    assert answers[0] == answers[1]
