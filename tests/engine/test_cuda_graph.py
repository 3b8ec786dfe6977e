"""A decoding step whose ids and positions lie on the device, and the CUDA graph of it.

On the CPU the step runs in Triton's interpreter, unrecorded, against decoding as it is elsewhere;
on a GPU the graph is held to the loop to the bit.
"""

from __future__ import annotations

import gc
import weakref

import pytest

from tests.kernels.dense import DEVICE, kernels, torch

transformers = pytest.importorskip("transformers", reason="graphs are of transformers' models")

from kvevict import build  # noqa: E402
from kvevict.backends.torch.decoder import TorchDecoder  # noqa: E402
from kvevict.engine import (  # noqa: E402
    Batch,
    cuda_graph,
    decode,
    decode_all,
    decode_together,
    prefill,
)
from kvevict.engine.rows import OneByOne, Together  # noqa: E402
from kvevict.engine.session import Session  # noqa: E402

METHODS = ("full", "nacl", "adakv", "laprox")
KINDS = (Together, cuda_graph.GraphStep)


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


def sessions(decoder: TorchDecoder, *methods: str, ids: list[int] | None = None) -> list[Session]:
    policies = [
        build(m, min_eviction_seqlen=0, **({} if m == "full" else {"keep_ratio": 0.3}))
        for m in methods
    ]
    return prefill(decoder, ids or tokens(1, 90), policies)


def unlike(decoder: TorchDecoder) -> list[Session]:
    """A session of each method, no two at one position."""
    rows = []
    for i, method in enumerate(METHODS):
        rows += sessions(decoder, method, ids=tokens(i, 30 + 25 * i))
        rows[i].extend(tokens(10 + i, 1 + i))
    return rows


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
    """Within some roundings of float16 by norm: a single number near nought may be far off."""
    return bool((a - b).float().norm() <= 0.01 * b.float().norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_the_device_is_a_step_of_the_loop(decoder, method: str, kind) -> None:
    one, other = sessions(decoder, method, method)
    for session in (one, other):
        session.extend([7, 8])  # so that the tail does not begin with what is decoded
        session.cache.reserve(2)  # and has to grow
    for token in (3, 200, 41):
        expected = other.extend([token])
        got = kind([one]).step([token])  # the first step of a graph is not recorded
        assert close(got[0], expected)
    assert one.cache.seen == 95
    assert_same_tails(one, other, close)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_side_by_side_are_each_as_alone(decoder, kind) -> None:
    """Of different prompts, at different positions, with tails of different lengths."""
    alone, rows = unlike(decoder), unlike(decoder)
    got = kind(rows).step([11, 12, 13, 14])
    hidden = kind(rows).extend_hidden(decoder.embed(torch.tensor([[5]] * 4, device=DEVICE)))
    after = decoder.logits(hidden)
    for i, (session, row) in enumerate(zip(alone, rows)):
        assert close(got[i], session.extend([11 + i]))
        assert close(after[i], session.extend([5]))
        assert_same_tails(session, row, close)


def test_others_take_the_places_of_those_who_leave(decoder) -> None:
    """Free places hold nothing, and whoever sits in one is found in the order of the rows."""
    alone, rows = unlike(decoder), unlike(decoder)
    graph = cuda_graph.GraphStep(rows[:3])
    for members in ([0, 1, 2], [1, 2], [2, 3, 1], [0, 3]):
        assert graph.seat([rows[i] for i in members]) is graph
        graph._launch = None  # so that nothing is recorded, on a GPU either
        got = graph.step([20 + i for i in members])
        for row, i in enumerate(members):
            assert close(got[row], alone[i].extend([20 + i]))
    for sessions, places in ((rows, 5), (rows[:1], 1)):  # too few places, and too many
        assert len(graph.seat(sessions)._places) == places


def test_who_leaves_a_graph_is_held_no_longer(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvevict.engine.batch.attention_kernels", lambda keys: kernels)
    batch = Batch(unlike(decoder), cuda_graph.WORTH)
    batch.step([1, 2, 3, 4])
    left = weakref.ref(batch.sessions[2].cache)
    batch.leave(2)
    gc.collect()
    assert left() is None


def test_a_step_that_cannot_be_recorded_goes_on_without(decoder, monkeypatch, capfd) -> None:
    def fails() -> None:
        raise RuntimeError("no graph\nin this test")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", fails)
    monkeypatch.setattr(cuda_graph, "_right", {"torch": True})
    for _ in range(2):
        one, other = sessions(decoder, "nacl", "nacl")
        graph = cuda_graph.GraphStep([one])
        for token in (3, 200, 41):
            assert close(graph.step([token])[0], other.extend([token]))
        assert_same_tails(one, other, close)
    told = capfd.readouterr().err
    assert told == "decoding goes on without a CUDA graph, slower: in this test\n"


def test_where_it_applies(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch with steps enough, to those that do not evict while they decode."""
    monkeypatch.setattr("kvevict.engine.batch.attention_kernels", lambda keys: kernels)
    for steps, kind in ((cuda_graph.WORTH, cuda_graph.GraphStep), (3, Together)):
        rows, alone = (sessions(decoder, "full", "h2o", "snapkv") for _ in range(2))
        batch = Batch(rows, steps)
        got = batch.step([5, 6, 7])
        assert [(own, type(part)) for own, part in batch._parts] == [
            ([1], OneByOne),
            ([0, 2], kind),
        ]
        for i, session in enumerate(alone):
            assert close(got[i], session.extend([5 + i]))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_the_graph_is_the_loop_to_the_bit(decoder, monkeypatch, method: str) -> None:
    one, other = sessions(decoder, method, method)
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
def test_sequences_that_join_and_leave_a_graph(decoder, monkeypatch) -> None:
    def answers() -> dict[int, list[int]]:
        methods = enumerate([*METHODS, *METHODS])
        each = (sessions(decoder, m, ids=tokens(i, 40 + 30 * i))[0] for i, m in methods)
        return dict(decode_all(each, 40, {end}, fits=lambda running: len(running) < 3))

    end = decode(sessions(decoder, "full", ids=tokens(0, 40))[0], 40)[25]
    recorded, graph = [], torch.cuda.CUDAGraph
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", lambda: recorded.append(1) or graph())
        got = answers()
    assert 0 < len(recorded) < 8
    assert got == by_loop(monkeypatch, do=answers)


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
