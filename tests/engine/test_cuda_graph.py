"""A decoding step whose ids and positions lie on the device, and the CUDA graph of it.

On the CPU the step runs in Triton's interpreter, unrecorded, against decoding as it is elsewhere;
on a GPU the graph is held to the loop to the bit.
"""

from __future__ import annotations

import gc
from copy import copy

import pytest

from tests.kernels.dense import DEVICE, torch

transformers = pytest.importorskip("transformers", reason="graphs are of transformers' models")

from kvevict import build  # noqa: E402
from kvevict.backends.torch.decoder import TorchDecoder  # noqa: E402
from kvevict.cache import KVCache  # noqa: E402
from kvevict.engine import cuda_graph, decode, decode_together, prefill  # noqa: E402
from kvevict.engine.session import Session  # noqa: E402

METHODS = ("full", "nacl", "adakv", "laprox")


@pytest.fixture(scope="module")
def decoder() -> TorchDecoder:
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        initializer_range=0.1,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    return TorchDecoder(model.to(DEVICE, torch.float16))


def tokens(seed: int, count: int) -> list[int]:
    return torch.randint(2, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def sessions(decoder: TorchDecoder, *methods: str) -> list[Session]:
    policies = [
        build(m, min_eviction_seqlen=0, **({} if m == "full" else {"keep_ratio": 0.3}))
        for m in methods
    ]
    return prefill(decoder, tokens(1, 90), policies)


def by_loop(monkeypatch: pytest.MonkeyPatch, *args, do=decode, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph, "WORTH", 1 << 30)
        return do(*args, **kwargs)


def assert_same_tails(one: Session, other: Session, compare=torch.equal) -> None:
    assert one.cache.seen == other.cache.seen
    for a, b in zip(one.cache.layers, other.cache.layers):
        assert a.tail == b.tail
        assert compare(a.tail_keys[:, : a.tail], b.tail_keys[:, : b.tail])
        assert compare(a.tail_values[:, : a.tail], b.tail_values[:, : b.tail])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_the_device_is_a_step_of_the_loop(decoder, method: str) -> None:
    one, other = sessions(decoder, method, method)
    for session in (one, other):
        session.extend([7, 8])  # so that the tail does not begin with what is decoded
        session.cache.reserve(5)
    for token in (3, 200, 41):
        expected = other.extend([token])
        got = cuda_graph.GraphStep(one)([token])  # its first step is not recorded
        assert close(got, expected)
        assert one.logits is got
    assert one.cache.seen == 95
    assert_same_tails(one, other, close)


def test_sequences_side_by_side_are_each_as_alone(decoder) -> None:
    alone = sessions(decoder, *METHODS)
    batch = copy(alone[0])
    batch.logits = torch.stack([s.logits for s in alone])
    batch.cache = KVCache.stack([s.fork().cache for s in alone])
    batch.cache.reserve(1)
    got = cuda_graph.GraphStep(batch)([11, 12, 13, 14])
    assert got.shape == (4, 256)
    for i, session in enumerate(alone):
        assert close(got[i], session.extend([11 + i]))
        for layer, whole in zip(session.cache.layers, batch.cache.layers):
            assert close(layer.tail_keys[:, 0], whole.tail_keys[2 * i : 2 * i + 2, 0])


def test_where_it_applies(decoder) -> None:
    full, grows = sessions(decoder, "full", "h2o")
    assert cuda_graph.applies(full, 100) == (DEVICE == "cuda")
    assert not cuda_graph.applies(full, cuda_graph.WORTH - 1)
    assert not cuda_graph.applies(full, 1024)  # the loop says which token is beyond the positions
    assert not cuda_graph.applies(grows, 100)  # it evicts while it decodes


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_the_graph_is_the_loop_to_the_bit(decoder, monkeypatch, method: str) -> None:
    one, other = sessions(decoder, method, method)
    assert cuda_graph.applies(one, 70)
    answer = decode(one, 70)
    assert answer == by_loop(monkeypatch, other, 70)
    assert len(set(answer)) > 5
    assert torch.equal(one.logits, other.logits)
    assert_same_tails(one, other)
    for session in (one, other):  # and go on, from the loop, then from another graph
        session.extend(tokens(2, 5))
    assert torch.equal(one.logits, other.logits)
    assert decode(one, 40) == by_loop(monkeypatch, other, 40)
    assert torch.equal(one.logits, other.logits)
    assert_same_tails(one, other)


@pytest.mark.gpu
def test_a_batch_in_a_graph_is_the_batch_in_the_loop(decoder, monkeypatch) -> None:
    one, other = sessions(decoder, *METHODS), sessions(decoder, *METHODS)
    answers = decode_together(one, 40)
    assert answers == by_loop(monkeypatch, other, 40, do=decode_together)
    assert [len(answer) for answer in answers] == [40] * 4


@pytest.mark.gpu
def test_the_graph_stops_at_an_end_token(decoder, monkeypatch) -> None:
    answer = decode(sessions(decoder, "nacl")[0], 40)
    end = answer[20]
    one, other = sessions(decoder, "nacl", "nacl")
    assert decode(one, 40, eos={end}) == answer[: answer.index(end)]
    by_loop(monkeypatch, other, 40, eos={end})
    assert torch.equal(one.logits, other.logits)
    assert_same_tails(one, other)


@pytest.mark.gpu
def test_memory_goes_back_prompt_after_prompt(decoder) -> None:
    held = []
    for _ in range(4):
        session = sessions(decoder, "snapkv")[0]
        decode(session, 40)
        del session
        gc.collect()
        torch.cuda.empty_cache()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[1:] == held[1:2] * 3  # after the first, which leaves the products' workspaces
