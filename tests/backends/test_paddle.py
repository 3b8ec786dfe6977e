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

GREEDY = {"max_new_tokens": 10, "decode_strategy": "greedy_search", "eos_token_id": -1}


def prompt(seed: int = 0, count: int = 100) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).integers(2, 256, (1, count)))


def generate(model, ids: paddle.Tensor, **settings) -> list[int]:
    """The new tokens; PaddleNLP's Llama wants the mask that its tokenizer gives."""
    settings = {**GREEDY, "attention_mask": paddle.ones_like(ids), **settings}
    return model.generate(ids, **settings)[0][0].tolist()


def nacl(**settings):
    return NACL(keep_ratio=0.2, min_eviction_seqlen=0, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_gives_the_tokens_of_our_own_decoding(tiny_model, method: str) -> None:
    policy = build(method, min_eviction_seqlen=0)
    with evict(tiny_model, policy, example=3) as sessions:
        ids = generate(tiny_model, prompt())
    own = prefill(PaddleDecoder(tiny_model), prompt()[0].tolist(), [policy], example=3)[0]
    assert ids == decode(own, 10)
    assert sessions[0].cache.seen == 100 + 9
    assert sessions[0].cache.entries == own.cache.entries


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


def test_several_prompts_or_beams(tiny_model) -> None:
    twice = paddle.concat([prompt(), prompt(1)])
    with evict(tiny_model, nacl()), pytest.raises(InputError, match="one prompt at a time"):
        generate(tiny_model, twice)
    beams = {"decode_strategy": "beam_search", "num_beams": 2}
    with evict(tiny_model, nacl()), pytest.raises(InputError, match="one prompt at a time"):
        generate(tiny_model, prompt(), **beams)


@pytest.mark.parametrize("kind", ["int64", "bool", "float32"])
def test_padding_is_refused_and_a_mask_of_ones_is_not(tiny_model, kind: str) -> None:
    mask = paddle.ones_like(prompt()).astype(kind)
    if kind == "float32":  # added to the scores
        mask = (mask - 1).reshape([1, 1, 1, -1])
    with evict(tiny_model, nacl()):
        plain = tiny_model(prompt(), return_dict=True).logits
        masked = tiny_model(prompt(), attention_mask=mask, return_dict=True).logits
        assert paddle.equal_all(plain, masked)
        mask[..., :5] = -1e4 if kind == "float32" else 0
        with pytest.raises(InputError, match="without padding"):
            tiny_model(prompt(), attention_mask=mask)


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


def test_goes_on_with_the_last_prompt_alone(tiny_model) -> None:
    with evict(tiny_model, nacl()) as sessions:
        first = tiny_model(prompt(), use_cache=True, return_dict=False)[-1]
        last = tiny_model(prompt(1, 90), use_cache=True, return_dict=False)[-1]
        tiny_model(prompt(2, 3), past_key_values=last)
        assert sessions[0].cache.seen == 93
        for stale in (first, last):
            with pytest.raises(InputError, match="past_key_values is not what the last prompt"):
                tiny_model(prompt(2, 3), past_key_values=stale)


def test_beyond_the_models_positions(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model.config, "max_position_embeddings", 105)
    with evict(tiny_model, nacl()), pytest.raises(InputError, match="105 positions"):
        generate(tiny_model, prompt())


@pytest.mark.parametrize(
    ("setting", "value", "plain"),
    [
        ("fuse_attention_qkv", True, "False"),
        ("alibi", True, "False"),
        ("hidden_act", "relu", "silu"),
    ],
)
def test_settings_that_change_the_arithmetic_are_refused(
    tiny_model, monkeypatch: pytest.MonkeyPatch, setting: str, value: object, plain: str
) -> None:
    monkeypatch.setattr(tiny_model.config, setting, value, raising=False)
    with pytest.raises(InputError, match=f"load the model with {setting}='?{plain}"):
        PaddleDecoder(tiny_model)
