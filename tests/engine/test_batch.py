"""A batch of different sequences, held to each of them alone, in both frameworks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import METHODS, InputError, build
from kvevict.engine import Batch, decode, decode_all, decode_together, prefill
from kvevict.repetition import Repetition
from tests.engine.greedy import NEAR, alone, assert_same_tokens

REPETITION = Repetition(before=[2], first=[3] * 5, later=[4] * 7, header=[9, 10])
RARE = ["h2o", "tova", "scissorhands"]  # they evict while decoding


def start(decoder, seed: int, length: int, method: str, keep_ratio: float = 0.3):
    """A session after its prompt."""
    ids = [(seed * 7919 + i * i * 31 + i * seed) % 254 + 2 for i in range(length)]
    ratio = {} if method == "full" else {"keep_ratio": keep_ratio}
    policy = build(method, min_eviction_seqlen=0, **ratio)
    return prefill(decoder, ids, [policy], seed, repetition=REPETITION)[0]


rows = st.lists(
    st.tuples(
        st.integers(0, 1000),  # seed
        st.integers(1, 90),  # length of the prompt
        st.sampled_from([*METHODS, *RARE, *RARE]),
        st.sampled_from([0.1, 0.3, 0.8]),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=12)
@given(rows=rows, count=st.integers(1, 20), beside=st.integers(1, 4))
def test_the_tokens_of_each_alone(tiny_decoder, rows, count: int, beside: int) -> None:
    """All at once, and a few beside each other, the next joining as one ends."""
    expected = [alone(start(tiny_decoder, *row), count) for row in rows]
    together = decode_together([start(tiny_decoder, *row) for row in rows], count)
    queue = (start(tiny_decoder, *row) for row in rows)
    joining = dict(decode_all(queue, count, fits=lambda sessions: len(sessions) < beside))
    for i, (ids, gaps) in enumerate(expected):
        assert_same_tokens(together[i], ids, gaps)
        assert_same_tokens(joining[i], ids, gaps)


def test_rows_end_by_themselves_and_others_take_their_place(tiny_decoder) -> None:
    rows = [(i, 30 + 7 * i, method) for i, method in enumerate(["full", "nacl", "h2o", "adakv"])]
    expected = [alone(start(tiny_decoder, *row), 20) for row in rows]
    end = expected[1][0][4]
    sizes, made = [], []

    def sessions():
        for row in rows:
            made.append(row)
            yield start(tiny_decoder, *row)

    def fits(running) -> bool:
        sizes.append(len(running))
        return len(running) < 2

    answers = dict(decode_all(sessions(), 20, {end}, fits=fits))
    for i, (ids, gaps) in enumerate(expected):
        whole = ids[: ids.index(end)] if end in ids else ids
        assert_same_tokens(answers[i], whole, gaps)
    assert len(made) == 4
    assert max(sizes) == 2


def test_sessions_join_leave_and_go_on_by_themselves(tiny_decoder) -> None:
    rows = [(1, 40, "snapkv"), (2, 17, "tova"), (3, 60, "full")]
    sessions = [start(tiny_decoder, *row) for row in rows]
    twins = [start(tiny_decoder, *row) for row in rows]
    batch = Batch(sessions[:2])
    for step, members in enumerate([[0, 1], [0, 1, 2], [1, 2], [1, 2, 0]]):
        if step == 1:
            batch.join(sessions[2])
        if step == 2:
            assert batch.leave(0) is sessions[0]
            sessions[0].extend([9, 8])  # by itself
            twins[0].extend([9, 8])
        if step == 3:
            batch.join(sessions[0])
        assert batch.sessions == [sessions[i] for i in members]
        logits = batch.step([step + 5 * i for i in members])
        for row, i in enumerate(members):
            expected = twins[i].extend([step + 5 * i])
            for got in (logits[row], sessions[i].logits):
                assert float((got - expected).abs().max()) < NEAR
    for session, twin in zip(sessions, twins):
        assert session.cache.seen == twin.cache.seen
        assert session.cache.entries == twin.cache.entries


def test_forks_share_the_prompt(tiny_decoder) -> None:
    session = start(tiny_decoder, 5, 80, "snapkv")
    forks = [session.fork() for _ in range(3)]
    batch = Batch([session, *forks])
    logits = batch.step([3, 4, 3, 200])
    assert float((logits[0] - logits[2]).abs().max()) < 1e-4
    for fork in forks:
        for one, other in zip(fork.cache.layers, session.cache.layers):
            assert one.keys is other.keys and one.tail_keys is not other.tail_keys


def test_nothing_is_taken_in_where_a_row_is_at_the_end(tiny_decoder, monkeypatch) -> None:
    sessions = [start(tiny_decoder, 1, 40, "full"), start(tiny_decoder, 2, 20, "h2o")]
    monkeypatch.setattr(tiny_decoder, "max_positions", 40)
    with pytest.raises(InputError, match="reaches 41 tokens, beyond the model's 40 positions"):
        Batch(sessions).step([1, 2])
    assert [session.cache.seen for session in sessions] == [40, 20]


def test_no_sessions_and_no_tokens(tiny_decoder) -> None:
    assert decode_together([], 5) == []
    assert decode_together([start(tiny_decoder, 1, 9, "full")], 0) == [[]]
    assert (
        decode(start(tiny_decoder, 1, 9, "full"), 1)
        == alone(start(tiny_decoder, 1, 9, "full"), 1)[0]
    )
