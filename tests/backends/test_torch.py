"""Transformers' Llama taken apart, and its `model.generate` under eviction."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch integration is optional")
if not torch.cuda.is_available():  # transformers imports Triton, which reads this once
    os.environ.setdefault("TRITON_INTERPRET", "1")
transformers = pytest.importorskip("transformers", reason="the PyTorch integration is optional")

from kvevict import (  # noqa: E402
    METHODS,
    NACL,
    Full,
    InputError,
    StreamingLLM,
    build,
    evict,
)
from kvevict.backends.torch.decoder import TorchDecoder  # noqa: E402
from kvevict.engine import decode, prefill, prefilling  # noqa: E402

GREEDY = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def tiny(**settings) -> transformers.LlamaForCausalLM:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        **settings,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> transformers.LlamaForCausalLM:
    return tiny()


def prompt(seed: int = 0, count: int = 100) -> torch.Tensor:
    return torch.randint(2, 256, (1, count), generator=torch.Generator().manual_seed(seed))


def answer(model, ids: torch.Tensor, **settings) -> list[int]:
    """The new tokens of transformers' `generate`."""
    settings = {**GREEDY, "attention_mask": torch.ones_like(ids), **settings}
    return model.generate(ids, **settings)[0, ids.shape[1] :].tolist()


def nacl(**settings):
    return NACL(keep_ratio=0.2, min_eviction_seqlen=0, **settings)


def test_full_cache_decodes_as_transformers_does(model) -> None:
    ids = prompt(count=120)
    (session,) = prefill(TorchDecoder(model), ids[0].tolist(), [build("full")])
    assert decode(session, 16) == answer(model, ids, max_new_tokens=16)


def test_sequences_at_one_position_are_as_one_by_one(model) -> None:
    decoder = TorchDecoder(model)
    hidden, mixed = torch.randn(2, 5, 1, 128)
    for layer in range(3):
        together = (*decoder.project(layer, hidden, 70), decoder.finish_layer(layer, hidden, mixed))
        for i in range(5):
            own = slice(i, i + 1)
            alone = (
                *decoder.project(layer, hidden[own], 70),
                decoder.finish_layer(layer, hidden[own], mixed[own]),
            )
            for whole, part in zip(together, alone):
                torch.testing.assert_close(whole[own], part)
    logits = decoder.logits(hidden)
    assert logits.shape == (5, 256)
    for i in range(5):
        alone = decoder.logits(hidden[i : i + 1])
        assert alone.shape == (256,)
        torch.testing.assert_close(logits[i], alone)


def test_ids_and_positions_on_the_device(model) -> None:
    decoder = TorchDecoder(model)
    ids = torch.tensor([[3, 4], [5, 6]])
    hidden = decoder.embed(ids)
    assert torch.equal(hidden[1:], decoder.embed([5, 6]))
    start = torch.tensor([40])
    for position in (40, 41, 300):  # the same tensor, moved on
        start.fill_(position)
        for layer in range(3):
            on_device = decoder.project(layer, hidden, start)
            for got, expected in zip(on_device, decoder.project(layer, hidden, position)):
                assert torch.equal(got, expected)


def test_rope_that_turns_keys_again_is_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(InputError, match="RoPE of type 'dynamic'"):
        TorchDecoder(tiny(rope_parameters=rope))


def test_parts_on_several_devices_are_refused() -> None:
    split = tiny()
    split.model.layers[1].to("meta")
    with pytest.raises(InputError, match="onto one device"):
        TorchDecoder(split)


def test_tables_are_made_once_for_all_layers(model, monkeypatch) -> None:
    decoder, made = TorchDecoder(model), []
    whole = prefill(decoder, prompt()[0].tolist(), [Full()])[0]
    monkeypatch.setattr(prefilling, "CHUNK", 32)
    hook = model.model.rotary_emb.register_forward_hook(lambda *call: made.append(call[1]))
    with hook:
        parts = prefill(decoder, prompt()[0].tolist(), [Full()])[0]
        assert [len(positions[0]) for _, positions in made] == [32, 32, 32, 4]
        parts.extend([7])
        assert len(made) == 5
    assert not decoder._rotations._tables
    whole.extend([7])
    torch.testing.assert_close(parts.logits, whole.logits)


# `model.generate` within `evict`.


@pytest.mark.parametrize("method", METHODS)
def test_gives_the_tokens_of_our_own_decoding(model, method: str) -> None:
    policy = build(method, min_eviction_seqlen=0)
    with evict(model, policy, example=3) as sessions:
        ids = answer(model, prompt())
    own = prefill(TorchDecoder(model), prompt()[0].tolist(), [policy], example=3)[0]
    assert ids == decode(own, 10)
    assert sessions[0].cache.seen == 100 + 9
    assert sessions[0].cache.entries == own.cache.entries


def test_full_cache_gives_the_models_own_tokens(model) -> None:
    expected = answer(model, prompt())
    with evict(model, Full()):
        assert answer(model, prompt()) == expected
        embeds = model.get_input_embeddings()(prompt())
        assert model.generate(inputs_embeds=embeds, **GREEDY)[0].tolist() == expected


def test_sampling_runs_and_follows_the_seed(model) -> None:
    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        with evict(model, nacl()):
            return answer(model, prompt(), do_sample=True, top_p=0.9, temperature=0.8)

    first = sample(1)
    assert len(first) == 10
    assert sample(1) == first
    assert any(sample(seed) != first for seed in range(2, 6))


def test_prompts_are_counted_into_the_noise(model) -> None:
    with evict(model, nacl(), example=5) as sessions:
        kept = []
        for _ in range(3):
            answer(model, prompt())
            kept.append(sessions[0].cache.layers[0].keys)
    for example, keys in enumerate(kept, start=5):
        ids = prompt()[0].tolist()
        own = prefill(TorchDecoder(model), ids, [nacl()], example=example)[0]
        assert torch.equal(keys, own.cache.layers[0].keys)
    assert not torch.equal(kept[0], kept[1])


def test_a_refused_prompt_does_not_count(model) -> None:
    with evict(model, nacl()):
        expected = answer(model, prompt())
    with evict(model, nacl()):
        with pytest.raises(InputError, match="512 positions"):
            answer(model, prompt(count=513))
        assert answer(model, prompt()) == expected


def test_goes_on_where_it_was(model) -> None:
    with evict(model, nacl()):
        expected = answer(model, prompt(), max_new_tokens=20)
    with evict(model, nacl()) as sessions:
        first = model.generate(prompt(), return_dict_in_generate=True, **GREEDY)
        answer(model, prompt(1))  # another prompt in between
        other = sessions[0].cache.seen
        again = model.generate(first.sequences, past_key_values=first.past_key_values, **GREEDY)
        assert again[0, 100:].tolist() == expected
        assert first.past_key_values.get_seq_length() == 119
        assert sessions[0].cache.seen == other


def test_calling_the_model_gives_the_logits_of_every_token(model) -> None:
    with evict(model, nacl()), torch.no_grad():
        read = model(prompt())
        asked = model(torch.tensor([[5, 6]]), past_key_values=read.past_key_values)
    torch.testing.assert_close(read.logits, model(prompt()).logits)
    own = prefill(TorchDecoder(model), prompt()[0].tolist(), [nacl()])[0]
    for i, token in enumerate([5, 6]):
        torch.testing.assert_close(asked.logits[0, i], own.extend([token]))
    assert asked.past_key_values.get_seq_length() == 102


def test_the_model_is_its_own_again_afterwards(model) -> None:
    before = answer(model, prompt())
    with pytest.raises(RuntimeError, match="within"), evict(model, nacl()):
        changed = answer(model, prompt())
        raise RuntimeError("within")
    assert before == answer(model, prompt()) != changed


def test_contexts_nest(model) -> None:
    with evict(model, nacl()) as outer:
        with evict(model, StreamingLLM(0.5, min_eviction_seqlen=0)) as inner:
            answer(model, prompt())
        assert (len(outer), len(inner)) == (0, 1)
        assert inner[0].cache.layers[0].lengths == [50, 50]
        answer(model, prompt())
        assert outer[0].cache.layers[0].lengths == [20, 20]


def test_the_last_prompts_cache_is_all_that_is_held(model) -> None:
    with evict(model, nacl()) as sessions:
        answer(model, prompt(0))
        first = weakref.ref(sessions[0].cache)
        answer(model, prompt(1, 90))
    gc.collect()
    assert first() is None
    assert len(sessions) == 1
    assert sessions[0].cache.layers[0].lengths == [18, 18]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 2}, "one prompt at a time, without beams, not 2"),
        ({"num_return_sequences": 3, "do_sample": True}, "without beams, not 3"),
        ({"attention_mask": torch.arange(100)[None] > 4}, "without padding"),
        ({"use_cache": False}, "leave use_cache on"),
        ({"cache_implementation": "static"}, "cannot use a StaticCache"),
        ({"past_key_values": "full"}, "cannot use a DynamicCache"),
        ({"prompt_lookup_num_tokens": 2}, "cannot take tokens back"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "no attention weights"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "no hidden states"),
    ],
)
def test_what_eviction_cannot_do(model, settings: dict, sentence: str) -> None:
    if settings.get("past_key_values"):
        settings = {"past_key_values": model(prompt()[:, :50]).past_key_values}
    with evict(model, nacl()), pytest.raises(InputError, match=sentence):
        answer(model, prompt(), **settings)


def test_several_prompts(model) -> None:
    with evict(model, nacl()), pytest.raises(InputError, match="one prompt at a time"):
        answer(model, torch.cat([prompt(), prompt(1)]))
