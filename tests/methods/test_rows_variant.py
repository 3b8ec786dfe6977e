"""The search's scores beside float64, point by point."""

from __future__ import annotations

import numpy as np
import pytest

from kvevict import InputError, build
from kvevict.engine import prefill
from tests.methods.brute import Prompt, kept, pool, shares

N, BUDGET, RECENT = 90, 22, 8


def expected(prompt: Prompt, layer: int, rows: int, **wanted) -> np.ndarray:
    """``[kv_heads, n]`` by the definition; ``rows`` counts those that are skipped too."""
    skip, norm = wanted.get("skip", 0), wanted.get("norm", "l2")
    weights = prompt.weights(layer)[:, :, N - rows : N - skip]
    values = prompt.v[layer, :, None, :N].astype(np.float64)
    w_o = prompt.w_o[layer].astype(np.float64)
    factor = np.linalg.norm(values @ w_o, axis=-1) if wanted.get("project", True) else 1.0
    if wanted.get("renormalise"):
        out = weights @ values
        gap = values[:, :, None] - out[:, :, :, None]  # [kv_heads, group, rows, n, d]
        change = np.linalg.norm(np.einsum("hgrnd,hgdm->hgrnm", gap, w_o), axis=-1)
        weights, factor = weights / np.maximum(1 - weights, 1e-3) * change, 1.0
    counts = np.arange(weights.shape[2], 0, -1.0)[:, None] ** -(wanted.get("power", 0.0) / 2)

    def of(part: np.ndarray, counts: np.ndarray) -> np.ndarray:
        part = part * counts
        return {"l2": np.linalg.norm, "l1": np.sum, "max": np.max}[norm](part, axis=2)

    if scales := wanted.get("scales"):
        sizes = [int(size) for size in scales.split("+")]
        seen = sum(of(weights[:, :, -s:], counts[-s:]) / s**0.5 for s in sizes)
    else:
        seen = of(weights, counts)
    scores = (seen * factor).max(1) if wanted.get("heads") == "worst" else (seen * factor).sum(1)
    if wanted.get("heads") == "layer":
        scores = np.repeat(scores.sum(0, keepdims=True), prompt.kv_heads, 0)
    scores[:, : wanted.get("n_sink", 0)] = 0
    kernel, shift = wanted.get("kernel_size", 7), wanted.get("shift", 0)
    scores = np.pad(scores, ((0, 0), (shift, 0)))[:, :N]
    if wanted.get("tail"):
        back, ahead = wanted.get("back", 31), wanted.get("ahead", 31)
        lent = np.zeros((len(scores), N - RECENT, N - RECENT))  # head, from, to
        for j, own in enumerate(scores[:, : N - RECENT].T):
            for to in range(max(0, j - back), min(N - RECENT, j + ahead + 1)):
                share = (1 + abs(to - j) / wanted.get("plateau", 1.0)) ** -wanted["tail"]
                lent[:, j, to] = own * share
        scores = lent.max(1) if wanted.get("pool") == "max" else lent.sum(1)
        scores = np.pad(scores, ((0, 0), (0, RECENT)))
    elif wanted.get("pool") == "max":
        half = kernel // 2
        scores = np.array(
            [[own[max(0, j - half) : j + half + 1].max() for j in range(N)] for own in scores]
        )
    else:
        scores = np.stack([pool(own, wanted.get("recent", RECENT), kernel) for own in scores])
    return scores / scores.sum()


POINTS = [
    {"window_size": 1},
    {"window_size": 16, "power": 1},
    {"scales": "1+4+16"},
    {"window_size": 4, "skip": 5},
    {"window_size": 8, "skip": 5, "power": 2},
    {"window_size": 8, "norm": "l1"},
    {"window_size": 8, "norm": "max", "power": 1},
    {"window_size": 8, "pool": "max", "kernel_size": 5},
    {"window_size": 2, "kernel_size": 15, "shift": 5},
    {"window_size": 2, "kernel_size": 5, "shift": 2, "pool": "max"},
    {"window_size": 8, "project": False},
    {"window_size": 8, "heads": "worst"},
    {"window_size": 8, "heads": "layer"},
    {"window_size": 8, "renormalise": True},
    {"window_size": 4, "recent": 1},
    {"window_size": 8, "tail": 1},
    {"window_size": 8, "tail": 1.5, "plateau": 4, "back": 3, "ahead": 20},
    {"window_size": 8, "tail": 1, "n_sink": 4},
    {"window_size": 8, "kernel_size": 15, "n_sink": 2},
    {"window_size": 8, "tail": 0.5, "pool": "max", "back": 2, "ahead": 11},
]


@pytest.mark.parametrize("settings", POINTS, ids=str)
def test_a_point_of_the_search(settings) -> None:
    prompt = Prompt(5, N, layers=2, kv_heads=2, group=3)
    policy = build("rows-variant", budget=BUDGET, **settings)
    found = kept(prefill(prompt, [1] * N, [policy], record=True)[0], prompt)
    sizes = [int(size) for size in settings.get("scales", "").split("+") if size]
    rows = max(sizes, default=settings.get("window_size")) + settings.get("skip", 0)
    recent = settings.get("recent", RECENT)
    for layer, heads in enumerate(found):
        sinks = settings.get("n_sink", 0)
        scores = expected(prompt, layer, rows, **settings)[:, sinks : N - recent]
        free = BUDGET - recent - sinks
        counts = shares(scores, free, int(0.2 * free))
        for own, positions, count in zip(scores, heads, counts):
            ranked = sorted(range(len(own)), key=lambda j: (-own[j], j))[:count]
            ranked = [*range(sinks), *(sinks + j for j in ranked), *range(N - recent, N)]
            assert positions == sorted(ranked)


def test_the_questions_rows() -> None:
    prompt = Prompt(6, N)
    asked, same = (build("rows-variant", budget=BUDGET, window_size=size) for size in (0, 11))
    sessions = prefill(prompt, [1] * N, [asked, same], record=True, question_tokens=11)
    assert kept(sessions[0], prompt) == kept(sessions[1], prompt)
    with pytest.raises(InputError, match="nobody says which they are"):
        prefill(prompt, [1] * N, [asked])


@pytest.mark.parametrize("settings", [{"scales": "4+x"}, {"skip": -1}, {"kernel_size": 4}])
def test_bad_settings(settings) -> None:
    with pytest.raises(InputError):
        build("rows-variant", keep_ratio=0.2, **settings)
