"""`model.generate` of PaddleNLP under eviction."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import paddle
import pytest

from kvevict import METHODS, NACL, Full, InputError, StreamingLLM, build, evict
from kvevict.backends.paddle.decoder import PaddleDecoder
from kvevict.engine import decode, prefill
from tests.engine.greedy import alone, assert_same_tokens

GREEDY = {"max_new_tokens": 10, "decode_strategy": "greedy_search", "eos_token_id": -1}


def prompt(seed: int = 0, count: int = 100) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).integers(2, 256, (1, count)))


def generate(model, ids: paddle.Tensor, **settings) -> list[int]:
    """The new tokens; PaddleNLP's Llama wants the mask that its tokenizer gives."""
    settings = {**GREEDY, "attention_mask": paddle.ones_like(ids), **settings}
    return model.generate(ids, **settings)[0][0].tolist()


def nacl(**settings):
    return NACL(keep_ratio=0.2, min_eviction_seqlen=0, **settings)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "kvzip"])
def test_gives_the_tokens_of_our_own_decoding(tiny_model, method: str) -> None:
    policy = build(method, min_eviction_seqlen=0)
    with evict(tiny_model, policy, example=3) as sessions:
        ids = generate(tiny_model, prompt())
    own = prefill(PaddleDecoder(tiny_model), prompt()[0].tolist(), [policy], example=3)[0]
    assert ids == decode(own, 10)
    assert sessions[0].cache.seen == 100 + 9
    assert sessions[0].cache.entries == own.cache.entries


def test_a_prompt_that_nobody_can_repeat_is_refused(tiny_model) -> None:
    refused = pytest.raises(InputError, match="kvzip: the model has to repeat the prompt, and how")
    with evict(tiny_model, build("kvzip", min_eviction_seqlen=0)), refused:
        generate(tiny_model, prompt())


def test_full_cache_gives_the_models_own_tokens(tiny_model) -> None:
    expected = generate(tiny_model, prompt())
    with evict(tiny_model, Full()):
        ids = generate(tiny_model, prompt())
    assert ids == expected


def test_sampling_runs_and_follows_the_seed(tiny_model) -> None:
    def sample(seed: int) -> list[int]:
        paddle.seed(seed)
        settings = {"decode_strategy": "sampling", "top_p": 0.9, "temperature": 0.8}
        with evict(tiny_model, nacl()):
            return generate(tiny_model, prompt(), **settings)

    first = sample(1)
    assert len(first) == 10
    assert sample(1) == first
    assert any(sample(seed) != first for seed in range(2, 6))


def test_the_model_is_its_own_again_afterwards(tiny_model) -> None:
    before = generate(tiny_model, prompt())
    with pytest.raises(RuntimeError, match="within"), evict(tiny_model, nacl()):
        changed = generate(tiny_model, prompt())
        raise RuntimeError("within")
    after = generate(tiny_model, prompt())
    assert before == after != changed


def test_contexts_nest(tiny_model) -> None:
    with evict(tiny_model, nacl()) as outer:
        with evict(tiny_model, StreamingLLM(0.5, min_eviction_seqlen=0)) as inner:
            generate(tiny_model, prompt())
        assert (len(outer), len(inner)) == (0, 1)
        assert inner[0].cache.layers[0].lengths == [50, 50]
        generate(tiny_model, prompt())
        assert outer[0].cache.layers[0].lengths == [20, 20]


def test_the_last_prompts_cache_is_all_that_is_held(tiny_model) -> None:
    with evict(tiny_model, nacl()) as sessions:
        generate(tiny_model, prompt(0))
        first = weakref.ref(sessions[0].cache)
        generate(tiny_model, prompt(1, 90))
    gc.collect()
    assert first() is None
    assert len(sessions) == 1
    assert sessions[0].cache.layers[0].lengths == [18, 18]


def padded(*prompts: paddle.Tensor) -> dict[str, paddle.Tensor]:
    """Prompts as a tokenizer gives them, padded on the left."""
    longest = max(ids.shape[1] for ids in prompts)

    def pad(x: paddle.Tensor) -> paddle.Tensor:
        return paddle.concat([paddle.zeros([1, longest - x.shape[1]], x.dtype), x], axis=1)

    ids, mask = (paddle.concat([*map(pad, x)]) for x in (prompts, map(paddle.ones_like, prompts)))
    positions = (mask.cumsum(1) - 1).clip(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


@pytest.mark.parametrize("method", ["full", "nacl", "adakv", "h2o", "tova", "expected_attention"])
@pytest.mark.parametrize("positions", ["of tokens", "of places"])
def test_several_prompts(tiny_model, method: str, positions: str) -> None:
    policy, lengths = build(method, min_eviction_seqlen=0), [37, 100, 64]
    prompts = [prompt(n, n) for n in lengths]
    inputs = padded(*prompts)
    if positions == "of places":
        del inputs["position_ids"]
    with evict(tiny_model, policy, example=3) as sessions:
        got = tiny_model.generate(**inputs, **GREEDY)[0].tolist()
    for i, ids in enumerate(prompts):
        own = prefill(PaddleDecoder(tiny_model), ids[0].tolist(), [policy], example=3 + i)[0]
        assert_same_tokens(got[i], *alone(own, 10))
        assert sessions[i].cache.seen == lengths[i] + 9


def test_answers_to_one_prompt_share_its_cache(tiny_model) -> None:
    sampled = {**GREEDY, "decode_strategy": "sampling", "num_return_sequences": 3}
    with evict(tiny_model, nacl()) as sessions:
        answers = tiny_model.generate(**padded(prompt(0, 90), prompt(1, 61)), **sampled)[0]
    assert list(answers.shape) == [6, 10] and len(sessions) == 6
    for first, *others in (sessions[:3], sessions[3:]):
        for layer, *rest in zip(*(one.cache.layers for one in (first, *others))):
            assert all(layer.keys is other.keys for other in rest)
            assert all(layer.tail_keys is not other.tail_keys for other in rest)


def test_beams_are_refused(tiny_model) -> None:
    beams = {"decode_strategy": "beam_search", "num_beams": 2}
    with evict(tiny_model, nacl()), pytest.raises(InputError, match="without beams"):
        generate(tiny_model, prompt(), **beams)


def test_prompts_are_counted_into_the_noise(tiny_model) -> None:
    with evict(tiny_model, nacl(), example=5) as sessions:
        kept = []
        for _ in range(2):
            generate(tiny_model, prompt())
            kept.append(sessions[0].cache.layers[0].keys.numpy())
    for example, keys in enumerate(kept, start=5):
        ids = prompt()[0].tolist()
        own = prefill(PaddleDecoder(tiny_model), ids, [nacl()], example=example)[0]
        assert (keys == own.cache.layers[0].keys.numpy()).all()
    assert (kept[0] != kept[1]).any()


def test_goes_on_with_the_prompt_that_it_came_from(tiny_model) -> None:
    with evict(tiny_model, nacl()) as sessions:
        first = tiny_model(prompt())[-1]
        last = tiny_model(prompt(1, 90))[-1]
        got = tiny_model(prompt(2, 3), past_key_values=first)[0]
        assert sessions[0].cache.seen == 90
        tiny_model(prompt(2, 3), past_key_values=last)
        assert sessions[0].cache.seen == 93
        with pytest.raises(InputError, match="has gone on since"):
            tiny_model(prompt(2, 3), past_key_values=first)
    own = prefill(PaddleDecoder(tiny_model), prompt()[0].tolist(), [nacl()])[0]
    np.testing.assert_allclose(got[0, 0].numpy(), own.extend(prompt(2, 3)[0].tolist()).numpy())


def test_beyond_the_models_positions(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model.config, "max_position_embeddings", 105)
    with evict(tiny_model, nacl()), pytest.raises(InputError, match="105 positions"):
        generate(tiny_model, prompt())
