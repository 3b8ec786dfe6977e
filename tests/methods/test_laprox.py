"""LaProx, and the model-wide selection that runs along with the prefill."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict import InputError, LaProx, build, scoring
from kvevict.engine import decode, model_wide
from kvevict.methods import Composition
from kvevict.methods.laprox import OutputScore
from kvevict.methods.nacl import ProxyScore
from kvevict.methods.parts import ModelWide, TopK
from tests.methods.brute import Prompt, choose, grow, held, kept, pool, run, shrink


def scores(prompt: Prompt, layer: int, window: int, kernel: int, project: bool) -> np.ndarray:
    """``[kv_heads, n]``, adding up to 1."""
    norms = np.sqrt((prompt.weights(layer)[:, :, -window:] ** 2).sum(2))
    if project:
        norms = norms * np.linalg.norm(prompt.projected(layer), axis=-1)
    pooled = np.stack([pool(s, window, kernel) for s in norms.sum(1)])
    return pooled / pooled.sum()


def one_selection(prompt: Prompt, budget: int, window: int, kernel: int, project: bool):
    """Positions kept by one ranking of every candidate after the last layer."""
    n, heads = prompt.n, prompt.kv_heads
    ranking = [
        (-score[h, j], layer, h, j)
        for layer in range(prompt.layers)
        for score in [scores(prompt, layer, window, kernel, project)]
        for h in range(heads)
        for j in range(n - window)
    ]
    result = [[list(range(n - window, n)) for _ in range(heads)] for _ in range(prompt.layers)]
    for _, layer, h, j in sorted(ranking)[: (budget - window) * heads * prompt.layers]:
        result[layer][h].append(j)
    return [[sorted(positions) for positions in layer] for layer in result]


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize(
    ("layers", "kv_heads", "group", "kernel", "keep_ratio"),
    [(1, 2, 2, 7, 0.2), (4, 2, 3, 7, 0.2), (6, 1, 1, 1, 0.5), (3, 4, 2, 3, 0.1)],
)
def test_same_entries_as_one_selection_after_the_last_layer(
    layers, kv_heads, group, kernel, keep_ratio, project
) -> None:
    n, window = 120, 8
    prompt = Prompt(layers, n, layers, kv_heads, group)
    settings = {"window_size": window, "kernel_size": kernel, "project": project}
    policy = LaProx(keep_ratio, **settings, min_eviction_seqlen=0)
    expected = one_selection(prompt, int(n * keep_ratio), window, kernel, project)
    assert kept(run(policy, prompt), prompt) == expected


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("pool_at", [None, "product", "attention"])
@pytest.mark.parametrize("reading", ["per_head", "group_mean"])
def test_what_the_paper_leaves_open(reading: str, pool_at: str | None, project: bool) -> None:
    n, window, group = 120, 8, 3
    prompt = Prompt(7, n, layers=3, kv_heads=2, group=group)
    ranking = []
    for layer in range(3):
        weights = prompt.weights(layer)[:, :, -window:]
        norms = np.linalg.norm(prompt.projected(layer), axis=-1) if project else 1.0
        if reading == "group_mean":
            attention = np.linalg.norm(weights.mean(1), axis=1)[:, None]
            norms = norms.sum(1, keepdims=True) if project else 1.0
        else:
            attention = np.linalg.norm(weights, axis=2)
        if (pool_at or {"per_head": "product"}.get(reading)) == "product":
            own = np.stack([pool(s, window, 7) for s in (attention * norms).sum(1)])
        else:
            own = np.stack([[pool(s, window, 7) for s in heads] for heads in attention])
            own = (own * norms).sum(1)
        own /= own.sum()
        ranking += [(-own[h, j], layer, h, j) for h in range(2) for j in range(n - window)]
    expected = [[list(range(n - window, n)) for _ in range(2)] for _ in range(3)]
    for _, layer, h, j in sorted(ranking)[: (24 - window) * 2 * 3]:
        expected[layer][h].append(j)
    settings = {"window_size": window, "project": project, "min_eviction_seqlen": 0}
    policy = LaProx(0.2, reading=reading, pool=pool_at, **settings)
    positions = kept(run(policy, prompt), prompt)
    assert positions == [[sorted(own) for own in layer] for layer in expected]


def test_window_rows_move_on_while_decoding() -> None:
    """The group's mean over the last rows, each over the entries that were there at its time."""
    n, window, steps, budget = 60, 4, 9, 15
    prompt = Prompt(11, n, layers=1, kv_heads=2, group=2, more=steps)
    parts = {"scorer": OutputScore(window, 3, project=False, reading="group_mean")}
    settings = {"keep_ratio": 0.25, "min_eviction_seqlen": 0, "decode_slack": 0}
    policy = Composition(name="rows", **parts, selector=TopK(recent=window), **settings)
    session = run(policy, prompt)
    rows = prompt.weights(0).mean(1)[:, -window:]  # [kv_heads, rows, n]
    state = [
        {j: list(rows[h, :, j]) for j in positions}
        for h, positions in enumerate(kept(session, prompt)[0])
    ]
    for step in range(n, n + steps):
        session.extend([1])
        for h, held_rows in enumerate(state):
            positions = [*held_rows, step]
            keys = prompt.k[0, h, positions].astype(np.float64)
            q = prompt.q[0, 2 * h : 2 * h + 2, step].astype(np.float64)
            weights = np.exp(q @ keys.T / 8**0.5)
            weights = (weights / weights.sum(-1, keepdims=True)).mean(0)
            before = {**held_rows, step: [0.0] * window}
            grown = {j: [*before[j][1:], w] for j, w in zip(positions, weights)}
            scores = pool(np.linalg.norm(list(grown.values()), axis=1), window, 3)
            left = choose(scores, budget, 0, window)
            state[h] = {positions[i]: grown[positions[i]] for i in left}
        assert held(session, prompt, 0) == [list(own) for own in state]


def test_values_are_projected_in_parts(monkeypatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 50)
    prompt = Prompt(9, 120, layers=3, kv_heads=2, group=3)
    policy = LaProx(0.2, window_size=8, min_eviction_seqlen=0)
    assert kept(run(policy, prompt), prompt) == one_selection(prompt, 24, 8, 7, True)


def test_never_holds_more_than_its_budget_and_one_layer(monkeypatch) -> None:
    """All layers' entries are written to one place of the budget's size, and stay there."""
    n, layers, heads = 200, 8, 2
    sizes, places, add = [], set(), model_wide.RunningBest.add

    def measured(self, layer, scores, most):
        assert layer.keys.shape[0] == n * heads
        add(self, layer, scores, most)
        sizes.append(self.held)
        places.update((x.data_ptr(), x.shape[0]) for x in self._parts[:2])

    monkeypatch.setattr(model_wide.RunningBest, "add", measured)
    monkeypatch.setattr(model_wide, "COLUMNS", 3)
    prompt = Prompt(3, n, layers, heads)
    policy = LaProx(0.2, window_size=8, min_eviction_seqlen=0)
    total = policy.entries(n) * heads * layers
    session = run(policy, prompt)
    assert sizes == sorted(sizes) and sizes[0] == n * heads and sizes[-1] == total
    assert {rows for _, rows in places} == {total} and len(places) == 2
    for name in ("keys", "values"):
        parts = [getattr(layer, name) for layer in session.cache.layers]
        assert sum(part.shape[0] for part in parts) == total
        ends = [part.data_ptr() + part.shape[0] * 8 * 4 for part in parts if part.shape[0]]
        starts = [part.data_ptr() for part in parts if part.shape[0]]
        assert starts[1:] == ends[:-1] and (starts[0], total) in places
    assert session.cache.entries == total
    assert kept(session, prompt) == one_selection(prompt, 40, 8, 7, True)


def test_budget_no_larger_than_the_window() -> None:
    prompt = Prompt(1, 100, layers=3)
    session = run(LaProx(0.1, window_size=32, min_eviction_seqlen=0), prompt)
    assert kept(session, prompt) == [[list(range(90, 100))] * 2] * 3


def test_heads_and_layers_may_be_left_with_nothing() -> None:
    """Nothing is protected here, and the keys of the first layer are much the smallest."""
    prompt = Prompt(2, 60, layers=3, more=5)
    prompt.k[1:] *= 50
    policy = build("keynorm", allocator="laprox", keep_ratio=0.2, min_eviction_seqlen=0)
    session = run(policy, prompt)
    assert [layer.lengths for layer in session.cache.layers][1:] == [[0, 0], [0, 0]]
    assert sum(session.cache.layers[0].lengths) == 12 * 2 * 3
    decode(session, 5)


def test_goes_on_evicting_while_decoding() -> None:
    """Each head keeps to its own share of the model-wide budget."""
    steps = 25
    prompt = Prompt(4, 120, layers=4, more=steps)
    policy = LaProx(0.2, window_size=4, decode_slack=3, min_eviction_seqlen=0)
    session = run(policy, prompt)
    budgets = [layer.lengths for layer in session.cache.layers]
    assert len({length for lengths in budgets for length in lengths}) > 2
    for step in range(steps):
        session.extend([1])
        for index, layer in enumerate(session.cache.layers):
            assert all(b <= n + layer.tail <= b + 3 for n, b in zip(layer.lengths, budgets[index]))
            newest = range(120 + step - 3, 120 + step + 1)
            for positions in held(session, prompt, index):
                assert positions[-4:] == list(newest)


def test_statistics_follow_the_entries_that_stay() -> None:
    """Sums of three rows under a model-wide budget, through every trim and while decoding."""
    n, steps, layers = 60, 14, 3
    prompt = Prompt(5, n, layers, more=steps)
    parts = {"scorer": ProxyScore(0.05), "allocator": ModelWide()}
    settings = {"keep_ratio": 0.2, "min_eviction_seqlen": 0, "decode_slack": 0}
    policy = Composition(name="wide", **parts, **settings)
    session = run(policy, prompt)
    received = np.stack([prompt.weights(layer)[:, :, -3:].sum((1, 2)) for layer in range(layers)])
    limit = np.sort(received.ravel())[-12 * 2 * layers]
    state = [
        [{j: w for j, w in enumerate(own) if w >= limit} for own in heads] for heads in received
    ]
    assert kept(session, prompt) == [[list(own) for own in heads] for heads in state]
    budgets = [[len(own) for own in heads] for heads in state]
    for step in range(n, n + steps):
        session.extend([1])
        for layer in range(layers):
            grown = grow(state[layer], prompt, layer, step)
            state[layer] = [shrink(own, b) for own, b in zip(grown, budgets[layer])]
            assert held(session, prompt, layer) == [list(own) for own in state[layer]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reading": "mean"}, "reading must be 'per_head' or 'group_mean', not 'mean'"),
        ({"pool": "score"}, "pool must be 'product' or 'attention', not 'score'"),
        ({"kernel_size": 2}, "kernel_size must be odd"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LaProx(**settings)


@pytest.mark.parametrize("selector", ["nacl", "criticalkv", "h2o"])
def test_ranks_by_importance_alone(selector: str) -> None:
    with pytest.raises(InputError, match="model-wide"):
        build("laprox", selector=selector)
