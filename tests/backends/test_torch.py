"""Transformers' Llama taken apart, and its `model.generate` under eviction."""

from __future__ import annotations

import pytest

from kvevict import Full, InputError, build
from kvevict.engine import decode, prefill, prefilling
from tests.backends.torch_model import answer, prompt, tiny, torch
from tests.rounding import assert_same

TorchDecoder = pytest.importorskip("kvevict.backends.torch.decoder").TorchDecoder


@pytest.fixture(scope="module")
def model():
    return tiny()


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
                assert_same(whole[own], part)
    logits = decoder.logits(hidden)
    assert logits.shape == (5, 256)
    for i in range(5):
        alone = decoder.logits(hidden[i : i + 1])
        assert alone.shape == (256,)
        assert_same(logits[i], alone)


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
                assert_same(got, expected)


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
    assert_same(parts.logits, whole.logits)
