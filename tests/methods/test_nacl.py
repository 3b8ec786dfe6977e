from __future__ import annotations

from fractions import Fraction

import numpy as np
import paddle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvevict import NACL, InputError, noise
from kvevict.engine import prefill
from kvevict.methods import LayerView, PromptShape
from tests.methods.brute import Prompt, best, choose, kept, run
from tests.test_noise import hashed

N = 300
SHARES = {
    "proxy_tokens_ratio": 0.05,
    "proxy_token_keep_ratio": 0.12,
    "random_token_keep_ratio": 0.07,
    "token_protect_ratio": 0.04,
}


def gumbel(seed: int, example: int, layer: int, head: int, count: int) -> np.ndarray:
    key = noise.key(seed, example, layer, head, 0)
    return -np.log(-np.log([hashed(key, j) for j in range(count)]))


@pytest.mark.parametrize(("kv_heads", "group"), [(2, 3), (1, 8), (4, 1)])
@pytest.mark.parametrize("sink_tokens", [256, 2, 0])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_proxies_choose_and_the_rest_is_drawn(kv_heads, group, sink_tokens, temperature) -> None:
    prompt = Prompt([kv_heads, sink_tokens], N, kv_heads=kv_heads, group=group)
    policy = NACL(
        **SHARES, sink_tokens=sink_tokens, temperature=temperature, seed=3, min_eviction_seqlen=0
    )
    sinks = min(sink_tokens, 6)  # at most half of the 12 that are protected
    recent = 12 - sinks
    candidates = range(sinks, N - recent)
    for layer, heads in enumerate(kept(run(policy, prompt, example=9), prompt)):
        proxies = prompt.weights(layer)[:, :, -15:].sum((1, 2))
        for h, positions in enumerate(heads):
            chosen = best(proxies[h], 36, candidates)
            noisy = proxies[h] / temperature
            noisy[sinks : N - recent] += gumbel(3, 9, layer, h, len(candidates))
            drawn = best(noisy, 21, set(candidates) - chosen)
            protected = {*range(sinks), *range(N - recent, N)}
            assert positions == sorted(protected | chosen | drawn)


def test_seed_example_layer_and_head_each_change_the_draw() -> None:
    prompt = Prompt(1, N, layers=2)
    # Every head of every layer sees the same, so that only the draw tells them apart.
    prompt.q[:], prompt.k[:] = prompt.q[:1, :1], prompt.k[:1, :1]

    def drawn(seed: int, example: int) -> list[tuple[int, ...]]:
        session = run(NACL(**SHARES, seed=seed, min_eviction_seqlen=0), prompt, example)
        return [tuple(positions) for heads in kept(session, prompt) for positions in heads]

    draws = [*drawn(0, 0), *drawn(1, 0), *drawn(0, 1)]
    assert len(set(draws)) == len(draws) == 12
    assert len(set.intersection(*map(set, draws))) >= 36 + 12  # what is not drawn, they share
    assert drawn(1, 0) == drawn(1, 0)


def test_odds_of_the_draw_are_the_softmax_of_the_scores() -> None:
    """One entry out of seven, by 20,000 heads that each draw on their own."""
    scores = np.array([0.0, 2.0, 0.3, -1.0, 1.0, 0.0, 0.5], np.float32)
    odds = np.exp(scores / 0.8) / np.exp(scores / 0.8).sum()
    heads = [noise.key(11, head) for head in range(20_000)]
    view = LayerView((), None, None, None, heads)
    settings = {"proxy_token_keep_ratio": 0, "random_token_keep_ratio": 0.2}
    selector = NACL(**settings, token_protect_ratio=0, temperature=0.8).selector
    tiled = paddle.to_tensor(scores).expand([len(heads), 7])
    prompt = PromptShape(7, Fraction("0.2"))
    mask = selector(tiled, [1] * len(heads), view, prompt).numpy()
    assert (mask.sum(1) == 1).all()
    expected = len(heads) * odds
    assert ((mask.sum(0) - expected) ** 2 / expected).sum() < 27.9  # 99.99%, 6 degrees of freedom


def test_keep_ratio_scales_the_three_shares() -> None:
    policy = NACL(keep_ratio=0.4)
    selector = policy.selector
    assert [float(x) for x in (selector.protect, selector.proxy, selector.random)] == [
        0.02,
        0.24,
        0.14,
    ]
    assert policy.entries(10_000) == 4000
    assert NACL().keep_ratio == 0.2


@given(
    st.integers(1, 200_000),
    st.integers(0, 400),
    st.integers(0, 999),
    st.integers(1, 1000),
)
def test_sinks_take_at_most_half_of_what_is_protected(n, sink_tokens, protect, budget) -> None:
    policy = NACL(
        proxy_token_keep_ratio=0.001,
        random_token_keep_ratio=0,
        token_protect_ratio=protect / 1000,
        sink_tokens=sink_tokens,
    )
    sinks, recent = policy.selector.protected(policy.shape(n), budget)
    both = min(n * protect // 1000, budget)
    assert sinks + recent == both
    assert sinks == min(sink_tokens, both // 2)


@pytest.mark.parametrize(("tokens", "asked"), [(7, None), ("question", 7), (11, 7)])
def test_proxies_in_tokens(tokens: int | str, asked: int | None) -> None:
    """A number of rows, or as many as the question has tokens."""
    prompt = Prompt(4, 120)
    policy = NACL(0.3, proxy_tokens=tokens, random_token_keep_ratio=0.0, min_eviction_seqlen=0)
    (session,) = prefill(prompt, [1] * 120, [policy], record=True, question_tokens=asked)
    rows = tokens if isinstance(tokens, int) else asked
    for layer, heads in enumerate(kept(session, prompt)):
        sums = prompt.weights(layer)[:, :, -rows:].sum((1, 2))
        assert heads == [choose(own, 36, 1, 1) for own in sums]


def test_a_question_that_nobody_told() -> None:
    policy = NACL(0.3, proxy_tokens="question", min_eviction_seqlen=0)
    with pytest.raises(InputError, match="the proxies are the question's tokens, and nobody said"):
        run(policy, Prompt(1, 50))
    for wrong in (0, 51):
        with pytest.raises(InputError, match=f"of 50 tokens cannot end in a question of {wrong}"):
            prefill(Prompt(1, 50), [1] * 50, [policy], question_tokens=wrong)


CUTS = st.lists(st.integers(0, 1000), min_size=3, max_size=3).map(sorted)
SIZES = st.one_of(
    st.builds(lambda entries: {"budget": entries}, st.integers(1, 10**4)),
    st.builds(lambda thousandths: {"keep_ratio": thousandths / 1000}, st.integers(1, 1000)),
)


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 1000), st.integers(0, 1000), SIZES)
def test_without_its_random_part_it_draws_nothing(n, total, protect, size) -> None:
    """At any length, ratio and budget, and whatever an allocator gives to a head."""
    protect = min(protect, total)
    shares = {
        "proxy_token_keep_ratio": (total - protect) / 1000,
        "token_protect_ratio": protect / 1000,
    }
    policy = NACL(**shares, **size, random_token_keep_ratio=0.0, min_eviction_seqlen=0)
    prompt, entries = policy.shape(n), policy.entries(n)
    counts = [entries - sum(policy.selector.protected(prompt, entries)), 0, 7]
    assert policy.selector._by_score(counts, prompt) == counts


@settings(deadline=None)
@given(st.integers(1, 10**6), CUTS)
def test_of_an_equal_share_the_floor_goes_by_score(n, cuts) -> None:
    proxy, protect, random = cuts[0], cuts[1] - cuts[0], max(1, cuts[2] - cuts[1])
    assume(proxy + protect + random <= 1000)
    policy = NACL(
        proxy_token_keep_ratio=proxy / 1000,
        random_token_keep_ratio=random / 1000,
        token_protect_ratio=protect / 1000,
        min_eviction_seqlen=0,
    )
    prompt, entries = policy.shape(n), policy.entries(n)
    counts = [entries - sum(policy.selector.protected(prompt, entries))]
    (by_score,) = policy.selector._by_score(counts, prompt)
    assert by_score == min(n * proxy // 1000, counts[0])
    assert -1 < counts[0] - by_score - n * Fraction(random, 1000) < 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proxy_tokens": 0}, "proxy_tokens must be at least 1, not 0"),
        ({"proxy_tokens": "all"}, "proxy_tokens must be a whole number or 'question', not 'all'"),
        ({"proxy_tokens": True}, "proxy_tokens must be a whole number or 'question', not True"),
        ({"proxy_token_keep_ratio": 0.95}, "must add up to between 0 and 1"),
        ({"proxy_tokens_ratio": 1.2}, "proxy_tokens_ratio must lie between 0 and 1"),
        ({"random_token_keep_ratio": -0.1}, "random_token_keep_ratio must lie between 0 and 1"),
        ({"sink_tokens": -1}, "sink_tokens must not be negative"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be a number, not nan"),
        ({"keep_ratio": 0}, "keep_ratio must be above 0"),
        ({"keep_ratio": 1.1}, "keep_ratio must lie between 0 and 1"),
        ({"keep_ratio": "a fifth"}, "keep_ratio must be a number between 0 and 1"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NACL(**settings)
