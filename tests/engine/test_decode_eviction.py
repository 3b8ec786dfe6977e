"""Eviction that goes on while decoding, over every method. H2O, TOVA, Scissorhands: their files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvevict import METHODS, AdaKV, Fade, InputError, SnapKV, build
from kvevict.engine import decode
from kvevict.methods import Composition
from kvevict.methods.nacl import ProxyScore
from kvevict.methods.parts import LayerShared, TopK
from tests.methods.brute import Prompt, choose, grow, held, kept, pool, run, shrink

MERGING = 10  # a seed whose heads of unequal budgets come to equal lengths
PROMPT_ONLY = [name for name in METHODS if build(name).scorer.prompt_only]
EVICTING = [method for method in METHODS if method not in ("full", *PROMPT_ONLY)]


@pytest.mark.parametrize("drop", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("method", EVICTING)
def test_every_head_stays_within_its_budget_and_the_slack(method: str, drop: float) -> None:
    prompt = Prompt(1, 80, kv_heads=3, group=1, more=60)
    policy = build(method, min_eviction_seqlen=0, decode_slack=5, decode_drop=drop)
    session = run(policy, prompt)
    budgets = [list(layer.lengths) for layer in session.cache.layers]
    lowest = [[n - int(n * drop) for n in own] for own in budgets]
    reached = set()
    for _ in range(60):
        session.extend([1])
        for index, (own, layer) in enumerate(zip(budgets, session.cache.layers)):
            for budget, length in zip(own, layer.lengths):
                assert length + layer.tail <= budget + 5
            assert layer.keys.shape[0] == sum(layer.lengths)
            reached |= {index} if layer.lengths == lowest[index] else set()
    assert session.cache.seen == 140
    assert reached == {0, 1}


def test_a_scorer_of_prompts_does_not_go_on() -> None:
    assert PROMPT_ONLY == ["defensivekv", "layerdefensivekv", "expected_attention", "kvzip"]
    for method in PROMPT_ONLY:
        with pytest.raises(InputError, match=f"and {method} cannot go on evicting while decoding"):
            build(method, decode_slack=5)
    with pytest.raises(InputError, match="ReconstructionScore scores a prompt alone"):
        build("h2o", scorer="kvzip")


def test_small_heads_count_as_much_as_the_first() -> None:
    """With a share dropped, the head of fewest entries is the one that outgrows its budget."""
    prompt = Prompt(1, 80, layers=1, more=60)
    prompt.q[:, 2:] *= 0.2  # attends evenly: few of its entries stand out
    settings = {"min_eviction_seqlen": 0, "decode_slack": 0, "decode_drop": 0.5}
    policy = AdaKV(0.3, window_size=4, alpha_safeguard=0.0, **settings)
    session = run(policy, prompt)
    layer = session.cache.layers[0]
    first, second = layer.lengths
    assert first > second + 6
    for _ in range(60):
        session.extend([1])
        assert layer.lengths[1] + layer.tail <= second


def test_heads_that_come_to_the_same_length_go_on_together() -> None:
    """Budgets such as 3 and 4 entries both shrink to 2; each head goes on with its own sums."""
    n, steps = 60, 24
    prompt = Prompt(MERGING, n, layers=1, kv_heads=4, more=steps)
    parts = {"scorer": ProxyScore(0.05), "allocator": LayerShared(0.0)}
    settings = {"min_eviction_seqlen": 0, "decode_slack": 0, "decode_drop": 0.5}
    session = run(Composition(name="ragged", **parts, keep_ratio=0.2, **settings), prompt)
    layer = session.cache.layers[0]
    budgets, runs = list(layer.lengths), len(list(layer.runs()))
    received = prompt.weights(0)[:, :, -3:].sum((1, 2))
    sums = [{j: own[j] for j in head} for own, head in zip(received, kept(session, prompt)[0])]
    merged = False
    for step in range(n, n + steps):
        session.extend([1])
        sums = grow(sums, prompt, 0, step)
        if any(len(own) > budget for own, budget in zip(sums, budgets)):
            sums = [shrink(own, b - b // 2) for own, b in zip(sums, budgets)]
        assert held(session, prompt, 0) == [list(own) for own in sums]
        merged |= len(list(layer.runs())) < runs
    assert merged


def test_snapkv_scores_what_it_holds() -> None:
    """Sums over the window grow by each decoded row; the newest entries are the window then."""
    n, window, budget = 60, 4, 15
    sizes = {"window_size": window, "kernel_size": 3}
    prompt = Prompt(2, n, kv_heads=1, layers=1, more=6)
    session = run(SnapKV(0.25, **sizes, min_eviction_seqlen=0, decode_slack=5), prompt)
    positions = kept(session, prompt)[0][0]
    received = prompt.weights(0)[0, :, -window:].sum((0, 1))
    sums = [{j: received[j] for j in positions}]
    for step in range(n, n + 6):
        assert held(session, prompt, 0) == [list(sums[0])]
        session.extend([1])
        sums = grow(sums, prompt, 0, step)
    entries = list(sums[0])
    scores = pool(np.array(list(sums[0].values())), window, 3)
    assert held(session, prompt, 0) == [[entries[i] for i in choose(scores, budget, 0, window)]]


@pytest.mark.parametrize("at_once", [1, 3])
def test_each_decoded_row_fades_what_was_there(at_once: int) -> None:
    """One after the other or several at once, without an eviction between."""
    n, steps, window = 40, 6, 5
    prompt = Prompt(6, n, kv_heads=1, group=1, layers=1, more=steps)
    settings = {"min_eviction_seqlen": 0, "decode_slack": steps}
    session = run(Fade(0.5, window_size=window, recent=2, **settings), prompt)
    positions = kept(session, prompt)[0][0]
    weights = prompt.weights(0)[0, 0, -window:] / np.arange(window, 0, -1)[:, None]
    squares = {j: (weights[:, j] ** 2).sum() for j in positions}
    for step in range(n, n + steps):
        row = grow([dict.fromkeys(squares, 0.0)], prompt, 0, step)[0]
        squares = {j: weight**2 + squares.get(j, 0.0) / 4 for j, weight in row.items()}
    for _ in range(steps // at_once):
        session.extend([1] * at_once)
    (column,) = session.cache.layers[0].columns
    np.testing.assert_allclose(column.numpy()[:, 0], list(squares.values()), rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "tensor", "message"),
    [
        ("h2o", "k", "h2o: the scores of layer 0 are not finite"),
        ("criticalkv", "v", "criticalkv: the projected values of layer 0 are not finite"),
    ],
)
def test_a_token_that_is_not_finite_is_told_in_its_step(method, tensor, message) -> None:
    prompt = Prompt(5, 60, layers=3, more=3)
    getattr(prompt, tensor)[0, 1, 61] = np.nan
    # What CriticalKV protects takes no part in its second stage.
    policy = build(method, keep_ratio=0.3, min_eviction_seqlen=0, decode_slack=0)
    policy = Composition.of(policy, method, selector=replace(policy.selector, recent=0))
    session = run(policy, prompt)
    session.extend([1])
    with pytest.raises(FloatingPointError, match=f"^{message}$"):
        session.extend([1])


def test_a_fork_goes_its_own_way() -> None:
    """Few rows score, so that what is decoded soon counts as much as the prompt."""
    n, steps = 60, 24
    prompt = Prompt(3, n, more=steps)
    parts = {"scorer": ProxyScore(0.05), "selector": TopK(recent=3)}
    settings = {"min_eviction_seqlen": 0, "decode_slack": 2, "decode_drop": 0.3}
    policy = Composition(name="few", **parts, **settings)
    alone, session = run(policy, prompt), run(policy, prompt)
    expected = []
    for _ in range(steps):
        alone.extend([1])
        expected.append([held(alone, prompt, layer) for layer in range(prompt.layers)])
    fork = session.fork()
    for one, span in ((fork, range(9)), (session, range(steps)), (fork, range(9, steps))):
        for step in span:
            one.extend([1])
            assert [held(one, prompt, layer) for layer in range(prompt.layers)] == expected[step]


def test_an_answer_of_any_length_takes_bounded_bytes() -> None:
    prompt = Prompt(4, 50, more=120)
    policy = build("snapkv", window_size=4, min_eviction_seqlen=0, decode_slack=8)
    session = run(policy, prompt)
    decode(session, 120)
    entry = 2 * 8 * 4
    assert session.cache.nbytes <= 4 * (10 + 8 + 64) * entry  # budget, slack, room to write
