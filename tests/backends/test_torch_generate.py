"""`model.generate` of transformers under eviction."""

from __future__ import annotations

import gc
import weakref

import pytest

from kvevict import METHODS, Full, InputError, StreamingLLM, build, evict
from kvevict.engine import decode, prefill
from tests.backends.torch_model import (
    GREEDY,
    answer,
    assert_close,
    nacl,
    prompt,
    tiny,
    torch,
    transformers,
)
from tests.engine.greedy import alone, assert_same_tokens

TorchDecoder = pytest.importorskip("kvevict.backends.torch.decoder").TorchDecoder


@pytest.fixture(scope="module")
def model() -> transformers.LlamaForCausalLM:
    return tiny()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "kvzip"])
def test_gives_the_tokens_of_our_own_decoding(model, method: str) -> None:
    policy = build(method, min_eviction_seqlen=0)
    with evict(model, policy, example=3) as sessions:
        ids = answer(model, prompt())
    own = prefill(TorchDecoder(model), prompt()[0].tolist(), [policy], example=3)[0]
    assert ids == decode(own, 10)
    assert sessions[0].cache.seen == 100 + 9
    assert sessions[0].cache.entries == own.cache.entries


def test_a_prompt_that_nobody_can_repeat_is_refused(model) -> None:
    whole = answer(model, prompt())
    refused = pytest.raises(InputError, match="kvzip: the model has to repeat the prompt, and how")
    with evict(model, build("kvzip", min_eviction_seqlen=0)), refused:
        answer(model, prompt())
    with evict(model, build("kvzip")):
        assert answer(model, prompt()) == whole  # it is short, and nothing is evicted


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
    assert_close(read.logits, model(prompt()).logits)
    own = prefill(TorchDecoder(model), prompt()[0].tolist(), [nacl()])[0]
    for i, token in enumerate([5, 6]):
        assert_close(asked.logits[0, i], own.extend([token]))
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
        ({"num_beams": 2}, "without beams: leave num_beams out"),
        ({"use_cache": False}, "leave use_cache on"),
        ({"cache_implementation": "static"}, "cannot use a StaticCache"),
        ({"past_key_values": "full"}, "cannot use a DynamicCache"),
        ({"prompt_lookup_num_tokens": 2}, "cannot take tokens back"),
        ({"prefill_chunk_size": 40}, "leave prefill_chunk_size out"),
        ({"output_attentions": True}, "does not honour output_attentions"),
        ({"output_hidden_states": True}, "does not honour output_hidden_states"),
    ],
)
def test_what_generate_is_refused(model, settings: dict, sentence: str) -> None:
    if settings.get("past_key_values"):
        settings = {"past_key_values": model(prompt()[:, :50]).past_key_values}
    with evict(model, nacl()), pytest.raises(InputError, match=sentence):
        answer(model, prompt(), **settings)


def padded(*prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Prompts as a tokenizer gives them, padded on the left."""
    longest = max(ids.shape[1] for ids in prompts)

    def pad(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (longest - x.shape[1], 0))

    mask = [pad(torch.ones_like(ids)) for ids in prompts]
    return {"input_ids": torch.cat([*map(pad, prompts)]), "attention_mask": torch.cat(mask)}


@pytest.mark.parametrize("method", ["full", "nacl", "adakv", "h2o", "tova", "expected_attention"])
def test_several_prompts(model, method: str) -> None:
    policy, lengths = build(method, min_eviction_seqlen=0), [37, 100, 64]
    prompts = [prompt(n, n) for n in lengths]
    with evict(model, policy, example=3) as sessions:
        got = model.generate(**padded(*prompts), **GREEDY)[:, 100:].tolist()
    for i, ids in enumerate(prompts):
        own = prefill(TorchDecoder(model), ids[0].tolist(), [policy], example=3 + i)[0]
        assert_same_tokens(got[i], *alone(own, 10))
        assert sessions[i].cache.seen == lengths[i] + 9


def test_the_full_cache_of_several_prompts(model) -> None:
    """The model's own logits of them, padding aside."""
    inputs = padded(prompt(0, 90), prompt(1, 61))
    with torch.no_grad():
        expected = model(**inputs).logits
        with evict(model, Full()):
            got = model(**inputs).logits
    assert_close(got[0], expected[0])
    assert_close(got[1, 29:], expected[1, 29:])


def test_answers_to_one_prompt_share_its_cache(model) -> None:
    inputs = padded(prompt(0, 90), prompt(1, 61))
    sampled = {**GREEDY, "do_sample": True, "num_return_sequences": 3}
    with evict(model, nacl(), example=4) as sessions:
        answers = model.generate(**inputs, **sampled)[:, 90:].tolist()
        assert len(sessions) == 6
        for first, *others in (sessions[:3], sessions[3:]):
            for layer, *rest in zip(*(one.cache.layers for one in (first, *others))):
                assert all(layer.keys is other.keys for other in rest)
                assert all(layer.tail_keys is not other.tail_keys for other in rest)
        second = prefill(TorchDecoder(model), prompt(1, 61)[0].tolist(), [nacl()], example=5)[0]
        assert torch.equal(sessions[5].cache.layers[2].keys, second.cache.layers[2].keys)
        model(prompt(2))  # the third prompt
    third = prefill(TorchDecoder(model), prompt(2)[0].tolist(), [nacl()], example=6)[0]
    assert torch.equal(sessions[0].cache.layers[0].keys, third.cache.layers[0].keys)
    assert len({tuple(own) for own in answers}) > 3


def test_turns_of_several_sequences(model) -> None:
    first = padded(prompt(0, 90), prompt(1, 61))
    turn = padded(prompt(2, 4), prompt(3, 7))
    mask = torch.cat([first["attention_mask"], turn["attention_mask"]], dim=1)
    second = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1)[:, 90:].clamp(min=0)}
    with evict(model, nacl()), torch.no_grad():
        read = model(**first, position_ids=(first["attention_mask"].cumsum(1) - 1).clamp(min=0))
        past = read.past_key_values
        with pytest.raises(InputError, match="is of 2 rows, and the tokens are of 1"):
            model(prompt(2, 4), past_key_values=past)
        got = model(turn["input_ids"], **second, past_key_values=past).logits
    decoder = TorchDecoder(model)
    for i, (n, new) in enumerate([(90, 4), (61, 7)]):
        own = prefill(decoder, prompt(i, n)[0].tolist(), [nacl()], example=i)[0]
        assert_close(got[i, -1], own.extend(prompt(2 + i, new)[0].tolist()))


@pytest.mark.parametrize("place", ["the call's", "the model's"])
def test_chunks_set_in_a_configuration(model, monkeypatch, place: str) -> None:
    config = transformers.GenerationConfig(prefill_chunk_size=40, **GREEDY)
    if place == "the model's":
        monkeypatch.setattr(model, "generation_config", config)
        config = None
    with evict(model, nacl()), pytest.raises(InputError, match="leave prefill_chunk_size out"):
        model.generate(prompt(), config)
