"""KVzip on given tensors, where a repeated token has the queries and keys of its position."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict import InputError, KVzip, prefill
from kvevict.attention import peaks
from kvevict.repetition import Repetition
from tests.methods.brute import Prompt, kept


def scores(prompt: Prompt, layer: int, chunks: list, sinks: int) -> np.ndarray:
    """The largest weight on each entry, float64 ``[kv_heads, n]``."""
    total = prompt.q.shape[2]
    result = np.zeros((prompt.kv_heads, prompt.n))
    for start, stop, ids in chunks:
        rows = np.arange(prompt.n, prompt.n + len(ids)) % total
        columns = [*range(min(sinks, start)), *range(start, stop)]
        for head in range(prompt.kv_heads * prompt.group):
            kv = head // prompt.group
            keys = prompt.k[layer, kv, [*columns, *rows]].astype(np.float64)
            logits = prompt.q[layer, head, rows].astype(np.float64) @ keys.T / keys.shape[1] ** 0.5
            logits[:, len(columns) :][~np.tri(len(ids), dtype=bool)] = -np.inf
            weights = np.exp(logits)
            weights /= weights.sum(-1, keepdims=True)
            own = weights[:, len(columns) - (stop - start) : len(columns)].max(0)
            result[kv, start:stop] = np.maximum(result[kv, start:stop], own)
    return result


@pytest.mark.parametrize("rows", [1 << 25, 1])
@pytest.mark.parametrize(
    ("before", "n_sink", "chunk_size"),
    [(0, 4, 2000), (0, 4, 31), (3, 4, 31), (12, 4, 40), (12, 0, 119), (120, 4, 7)],
)
def test_ranks_over_the_whole_model(monkeypatch, before, n_sink, chunk_size, rows) -> None:
    monkeypatch.setattr(peaks, "BLOCK", rows)
    n, layers, heads, budget = 120, 3, 2, 24
    prompt = Prompt(chunk_size, n, layers, heads, group=3, more=40)
    ids = list(range(n))
    repetition = Repetition(ids[:before], first=[7] * 5, later=[8] * 6, header=[9, 9])
    policy = KVzip(0.2, chunk_size=chunk_size, n_sink=n_sink, min_eviction_seqlen=0)
    (session,) = prefill(prompt, ids, [policy], record=True, repetition=repetition)

    chunks = []
    for start in range(before, n, chunk_size):
        stop = min(start + chunk_size, n)
        asked = [7] * 5 if start == before else [8] * 6 + ids[max(before, start - 8) : start]
        chunks.append((start, stop, [*asked, 9, 9, *ids[start:stop]]))
    fixed = min(budget, max(before, n_sink))
    ranking = [
        (-own[h, j], layer, h, j)
        for layer in range(layers)
        for own in [scores(prompt, layer, chunks, max(before, n_sink))]
        for h in range(heads)
        for j in range(fixed, n)
    ]
    expected = [[list(range(fixed)) for _ in range(heads)] for _ in range(layers)]
    for _, layer, h, j in sorted(ranking)[: (budget - fixed) * heads * layers]:
        expected[layer][h].append(j)
    found = kept(session, prompt)
    assert found == [[sorted(positions) for positions in layer] for layer in expected]
    assert session.cache.seen == n  # of what was repeated nothing is left


def test_one_pass_for_chunks_of_several_sizes() -> None:
    prompt = Prompt(1, 90)
    repetition = Repetition([], [1], [2], [3])
    policies = [KVzip(0.3, chunk_size=size, min_eviction_seqlen=0) for size in (40, 25, 40)]

    def run(*chosen: KVzip) -> list:
        sessions = prefill(prompt, [5] * 90, list(chosen), record=True, repetition=repetition)
        return [kept(session, prompt) for session in sessions]

    together = run(*policies)
    assert together == [run(policy)[0] for policy in policies]
    assert together[0] == together[2] != together[1]


def test_one_sentence_where_nothing_can_be_repeated() -> None:
    prompt = Prompt(1, 90)
    policy = KVzip(0.3, min_eviction_seqlen=0)
    with pytest.raises(InputError, match="kvzip: the model has to repeat the prompt"):
        prefill(prompt, [5] * 90, [policy])
    prefill(prompt, [5] * 90, [KVzip(1.0, min_eviction_seqlen=0), KVzip(0.3)])  # nothing to score
    prompt.max_positions = 182
    repetition = Repetition([], [1], [2], [3])
    prefill(prompt, [5] * 90, [policy], repetition=repetition)
    prompt.max_positions = 181
    message = (
        "^kvzip: a prompt of 90 tokens and its longest chunk, repeated behind it, reach 182 of the "
        "model's 181 positions: shorten it, or set a smaller chunk_size$"
    )
    with pytest.raises(InputError, match=message):
        prefill(prompt, [5] * 90, [policy], repetition=repetition)
    smaller = KVzip(0.3, chunk_size=60, min_eviction_seqlen=0)
    prefill(prompt, [5] * 90, [smaller], repetition=repetition)


@pytest.mark.parametrize("setting", [{"chunk_size": 0}, {"n_sink": -1}])
def test_settings_out_of_range(setting: dict) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        KVzip(**setting)
