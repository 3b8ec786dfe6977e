"""Prefill and decoding on a random Llama, held to PaddleNLP's own and to themselves."""

from __future__ import annotations

from functools import partial

import numpy as np
import paddle
import pytest

from kvevict import METHODS, InputError, build, engine
from kvevict.backends.paddle.decoder import PaddleDecoder
from kvevict.engine import decode, decode_together, prefilling
from kvevict.repetition import Repetition
from tests.rounding import assert_same

REPETITION = Repetition(before=[2], first=[3] * 5, later=[4] * 7, header=[9, 10])
prefill = partial(engine.prefill, repetition=REPETITION)


@pytest.fixture(scope="module")
def decoder(tiny_model) -> PaddleDecoder:
    return PaddleDecoder(tiny_model)


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, 256, count).tolist()


def policy(method: str, **settings):
    if method != "full":
        settings = {"keep_ratio": 0.3, **settings}
    return build(method, min_eviction_seqlen=0, **settings)


def full():
    return policy("full")


@pytest.mark.parametrize("length", [1, 2, 150])
def test_full_cache_decodes_as_paddlenlp_does(decoder, tiny_model, length: int) -> None:
    ids = tokens(length, length)
    inputs = {
        "input_ids": paddle.to_tensor([ids]),
        "attention_mask": paddle.ones([1, length], "int64"),
    }
    greedy = {"decode_strategy": "greedy_search", "eos_token_id": -1}
    stock, _ = tiny_model.generate(**inputs, max_new_tokens=16, **greedy)
    session = prefill(decoder, ids, [full()])[0]
    assert decode(session, 16) == stock[0].tolist()
    assert session.cache.seen == length + 15


def test_logits_are_those_of_paddlenlp(decoder, tiny_model) -> None:
    ids = tokens(0, 120)
    with paddle.no_grad():
        expected = tiny_model(paddle.to_tensor([ids]))[0][0]
    session = prefill(decoder, ids[:100], [full()])[0]
    np.testing.assert_allclose(session.logits.numpy(), expected[99].numpy(), atol=2e-3)
    for position in range(100, 120):
        logits = session.extend([ids[position]])
        np.testing.assert_allclose(logits.numpy(), expected[position].numpy(), atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_is_the_full_cache(decoder, method: str) -> None:
    settings = {} if method == "full" else {"keep_ratio": 1.0}
    ids = tokens(2, 90)
    one, other = prefill(decoder, ids, [full(), policy(method, **settings)])
    for all_of_it, kept in zip(one.cache.layers, other.cache.layers):
        assert all_of_it.lengths == kept.lengths
        np.testing.assert_array_equal(all_of_it.keys.numpy(), kept.keys.numpy())
        np.testing.assert_array_equal(all_of_it.values.numpy(), kept.values.numpy())
    assert decode(one, 8) == decode(other, 8)
    assert_same(one.logits, other.logits)


def test_several_policies_in_one_prefill_give_what_each_gives_alone(decoder) -> None:
    ids = tokens(3, 130)
    policies = [policy(method) for method in METHODS]
    together = prefill(decoder, ids, policies, example=2)
    answers = set()
    for one, session in zip(policies, together):
        alone = prefill(decoder, ids, [one], example=2)[0]
        answer = decode(alone, 6)
        assert decode(session, 6) == answer
        assert_same(session.logits, alone.logits)
        assert session.cache.nbytes == alone.cache.nbytes
        answers.add(tuple(answer))
    assert len(answers) > 5  # the methods do differ


@pytest.mark.parametrize("method", ["full", "laprox", "h2o"])
def test_questions_do_not_harm_each_other(decoder, method: str) -> None:
    context, *questions = tokens(4, 120), tokens(5, 7), tokens(6, 1), tokens(5, 7)

    def compressed():
        return prefill(decoder, context, [policy(method)])[0]

    def answer(session, question: list[int]) -> list[int]:
        session.extend(question)
        return decode(session, 6)

    shared = compressed()
    before = [layer.keys.numpy().copy() for layer in shared.cache.layers]
    answers = [answer(shared.fork(), question) for question in questions]
    assert answers == [answer(compressed(), question) for question in questions]
    assert answers[0] == answers[2] != answers[1]
    assert shared.cache.seen == 120
    for layer, keys in zip(shared.cache.layers, before):
        assert layer.tail == 0
        np.testing.assert_array_equal(layer.keys.numpy(), keys)


@pytest.mark.parametrize(("method", "sent"), [("nacl", 1), ("random", 1), ("snapkv", 0)])
def test_noise_keys_are_sent_once_a_prompt(decoder, monkeypatch, method: str, sent: int) -> None:
    """Paddle's host waits for each copy: those of all layers go together, and only if asked for."""
    shapes, to_tensor = [], paddle.to_tensor

    def watched(data, *args, **kwargs):
        shapes.append(np.shape(data))
        return to_tensor(data, *args, **kwargs)

    monkeypatch.setattr(paddle, "to_tensor", watched)
    prefill(decoder, tokens(5, 80), [policy(method)])
    assert shapes.count((decoder.layers, decoder.kv_heads)) == sent
    assert (decoder.kv_heads,) not in shapes


def test_a_session_that_went_on_cannot_be_forked(decoder) -> None:
    session = prefill(decoder, tokens(1, 20), [full()])[0]
    session.extend([5])
    with pytest.raises(ValueError, match="forked"):
        session.fork()


@pytest.mark.parametrize("method", ["full", "nacl", "adakv", "laprox"])
def test_many_tokens_at_once_are_as_one_by_one(decoder, method: str) -> None:
    one, many = prefill(decoder, tokens(7, 100), [policy(method)] * 2)
    question = tokens(8, 9)
    for token in question:
        one.extend([token])
    many.extend(question)
    np.testing.assert_allclose(one.logits.numpy(), many.logits.numpy(), atol=2e-3)
    for a, b in zip(one.cache.layers, many.cache.layers):
        np.testing.assert_allclose(
            a.tail_keys[:, :9].numpy(), b.tail_keys[:, :9].numpy(), atol=2e-3
        )
    assert decode(one, 10) == decode(many, 10)


def test_layers_completed_in_chunks(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens(9, 101)
    whole = prefill(decoder, ids, [policy("snapkv")], record=True)[0]
    monkeypatch.setattr(prefilling, "CHUNK", 16)
    parts = prefill(decoder, ids, [policy("snapkv")], record=True)[0]
    np.testing.assert_allclose(whole.logits.numpy(), parts.logits.numpy(), atol=2e-3)
    for a, b in zip(whole.cache.layers, parts.cache.layers):
        assert a.positions.tolist() == b.positions.tolist()
    assert decode(whole, 10) == decode(parts, 10)


def test_positions_go_on_from_the_prompts_length(decoder, tiny_model) -> None:
    """With half the entries gone, a decoded key still has the rotation of its true position."""
    ids = tokens(10, 80)
    session = prefill(decoder, ids, [policy("streamingllm", keep_ratio=0.5)])[0]
    session.extend([7])
    expected = decoder.project(0, decoder.embed([7]), 80)[1][0, :, 0]
    layer = session.cache.layers[0]
    assert layer.lengths == [40, 40]
    np.testing.assert_allclose(layer.tail_keys[:, 0].numpy(), expected.numpy(), atol=1e-6)


def test_decoding_stops_at_an_end_token(decoder) -> None:
    ids = tokens(11, 40)
    answer = decode(prefill(decoder, ids, [full()])[0], 12)
    end = answer[5]
    first = answer.index(end)
    assert decode(prefill(decoder, ids, [full()])[0], 12, eos={end}) == answer[:first]
    assert decode(prefill(decoder, ids, [full()])[0], 0) == []


def test_room_for_the_answer_is_made_once(decoder) -> None:
    session = prefill(decoder, tokens(12, 40), [policy("snapkv", window_size=4)])[0]
    decode(session, 30)
    assert [layer.tail_keys.shape[1] for layer in session.cache.layers] == [30] * 3


def test_no_tokens(decoder) -> None:
    with pytest.raises(InputError, match="the prompt has no tokens"):
        prefill(decoder, [], [full()])


def test_beyond_the_models_positions(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model.config, "max_position_embeddings", 60)
    short = PaddleDecoder(tiny_model)
    with pytest.raises(InputError, match="reaches 61 tokens, beyond the model's 60 positions"):
        prefill(short, tokens(13, 61), [full()])
    session = prefill(short, tokens(13, 59), [policy("streamingllm")])[0]
    session.extend([1])
    with pytest.raises(InputError, match="reaches 61 tokens"):
        session.extend([1])


def test_decoding_together_gives_what_each_gives_alone(decoder) -> None:
    ids, question = tokens(10, 140), tokens(11, 5)
    policies = [policy(method) for method in METHODS] + [policy("nacl", keep_ratio=0.6)]
    assert any(one.decode_slack is not None for one in policies)
    alone, together = prefill(decoder, ids, policies), prefill(decoder, ids, policies)
    for session in [*alone, *together]:
        session.extend(question)
    expected = [decode(session, 9) for session in alone]
    stop = expected[0][4]
    answers = decode_together(together, 9)
    assert answers == expected
    assert len({tuple(answer) for answer in answers}) > 5  # the methods do differ
    again = prefill(decoder, ids + question, policies[:4])
    assert decode_together(again, 0) == [[]] * 4
    ends = [decode(one, 9, {stop}) for one in prefill(decoder, ids + question, policies)]
    assert decode_together(prefill(decoder, ids + question, policies), 9, {stop}) == ends
    assert len({len(answer) for answer in ends}) > 1


def test_an_answer_does_not_end_before_it_has_begun(decoder) -> None:
    ids, question = tokens(10, 140), tokens(11, 5)
    policies = [full(), policy("snapkv"), policy("random")]

    def asked():
        sessions = prefill(decoder, ids, policies)
        for session in sessions:
            session.extend(question)
        return sessions

    ranked = [session.logits.flatten().topk(5)[1].tolist() for session in asked()]
    ends = {ranked[0][0], ranked[0][1], ranked[1][0]}
    begin = [next(token for token in best if token not in ends) for best in ranked]
    alone = [decode(session, 9, ends, min_new_tokens=1) for session in asked()]
    assert [answer[0] for answer in alone] == begin
    assert not ends.intersection(token for answer in alone for token in answer)
    assert decode_together(asked(), 9, ends, min_new_tokens=1) == alone
    assert [decode(session, 9, ends) for session in asked()][:2] == [[], []]
