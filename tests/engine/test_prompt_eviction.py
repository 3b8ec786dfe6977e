"""What holds for every method, whatever the shapes: exact budgets, protection, bytes, order."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import METHODS, build
from kvevict.engine import prefill
from tests.methods.brute import REPETITION, Prompt, kept, run

SMALL = {
    "window_size": 5, "kernel_size": 3, "recent": 3, "n_sink": 2, "history_window": 20,
    "chunk_size": 50, "n_future_positions": 16,
}  # fmt: skip
WITHOUT_RATIO = ("full",)
# Methods that score a prompt alone, and so do not go on evicting while decoding.
PROMPT_ONLY = {
    "expected_attention": {},
    "kvzip": {"chunk_size": 50},
    "defensivekv": {"window_size": 5},
    "layerdefensivekv": {"window_size": 5},
}


def policies(size: dict, **common) -> list:
    """Every method and some compositions, with spans that suit short prompts."""
    common["min_eviction_seqlen"] = 0
    result = []
    for method in METHODS:
        if method in PROMPT_ONLY and "decode_slack" in common:
            continue
        accepted = {field.name for field in fields(METHODS[method])}
        own = {name: value for name, value in SMALL.items() if name in accepted}
        if method not in WITHOUT_RATIO:
            own.update(size)
        result.append(build(method, **own, **common))
    common.update(size)
    result += [
        build("nacl", scorer="laprox", **common),
        build("nacl", allocator={"adakv": {"alpha": 0.5}}, **common),
        build("laprox", allocator="adakv", **common),
        build("h2o", allocator="pyramidkv", selector="nacl", **common),
        build("tova", allocator="laprox", **common),
        build("nacl", proxy_tokens=3, **common),
        build("laprox", reading="group_mean", window_size=5, **common),
    ]
    return result


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 300),
    size=st.integers(1, 100),
    in_entries=st.booleans(),
    layers=st.integers(1, 3),
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_exact_budget_order_protection_and_bytes(
    n, size, in_entries, layers, kv_heads, group, seed
) -> None:
    prompt = Prompt(seed, n, layers, kv_heads, group, d=4, hidden=4)
    chosen = policies({"budget": size} if in_entries else {"keep_ratio": size / 100})
    kept_of_each = min(n, size) if in_entries else max(1, n * size // 100)
    sessions = prefill(prompt, [1] * n, chosen, record=True, repetition=REPETITION)
    for policy, session in zip(chosen, sessions):
        budget = n if policy.name == "full" else kept_of_each
        assert policy.entries(n) == budget
        positions = kept(session, prompt)  # checks range, order and what lies at each position
        counts = [len(head) for layer in positions for head in layer]
        assert sum(counts) == budget * layers * kv_heads, policy.name
        sinks, recent = policy.selector.protected(policy.shape(n), budget)
        assert min(sinks, recent) >= 0
        assert sinks + recent <= budget
        for layer in positions:
            for head in layer:
                assert head[:sinks] == list(range(sinks)), policy.name
                assert head[len(head) - recent :] == list(range(n - recent, n)), policy.name
        check_bytes(session.cache, sum(counts), head_dim=4)


def check_bytes(cache, entries: int, head_dim: int) -> None:
    """What the tensors themselves hold: two rows of float32 for each entry, and no more."""
    rows = [t.numpy() for layer in cache.layers for t in (layer.keys, layer.values)]
    assert sum(t.nbytes for t in rows) == entries * 2 * head_dim * 4
    assert all(layer.tail_keys is None for layer in cache.layers)
    assert cache.nbytes == entries * 2 * head_dim * 4
    assert cache.entries == entries
    for layer in cache.layers:
        assert layer.keys.shape[0] == sum(layer.lengths)


@pytest.mark.parametrize("method", METHODS)
def test_short_prompts_are_left_whole(method: str) -> None:
    prompt = Prompt(0, 30)
    policy = build(method, min_eviction_seqlen=30)
    assert kept(run(policy, prompt), prompt) == [[list(range(30))] * 2] * 2


def test_ratios_of_many_digits_are_exact() -> None:
    for ratio in (0.123456789, 0.29, 1e-05):
        budget = build("snapkv", keep_ratio=ratio, min_eviction_seqlen=0).entries(1_000_000)
        assert budget == max(1, int(Fraction(str(ratio)) * 1_000_000))


def test_scores_that_tie_keep_the_lower_positions() -> None:
    # Powers of two: norms, scores, the scale 1/√4 and weights of 1/64 are exact in any order of
    # summation, so that the ties are ties on every processor.
    prompt = Prompt(0, 64, d=4)
    prompt.q[:], prompt.k[:] = 0.5, 2.0
    for policy in (
        build("keynorm", keep_ratio=0.25, min_eviction_seqlen=0),
        build("tova", keep_ratio=0.25, min_eviction_seqlen=0),
    ):
        assert kept(run(policy, prompt), prompt) == [[list(range(16))] * 2] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("full", "streamingllm", "random")]
)
def test_scores_that_are_not_finite_name_layer_and_method(method: str, bad: float) -> None:
    prompt = Prompt(0, 60)
    prompt.k[1, 1, 20] = bad
    settings = {"keep_ratio": 0.5} if method != "nacl" else {}
    policy = build(method, min_eviction_seqlen=0, **settings)
    with pytest.raises(FloatingPointError, match=rf"^{method}: .*layer 1"):
        run(policy, prompt)


def test_one_prefill_serves_several_policies_as_runs_of_their_own_would() -> None:
    prompt = Prompt(5, 150, more=6)
    together = policies({"keep_ratio": 0.2}, decode_slack=2)
    together += [build(method, keep_ratio=r, min_eviction_seqlen=0, **PROMPT_ONLY[method])
                 for method in PROMPT_ONLY for r in (0.2, 0.4)]  # fmt: skip
    given = {"example": 4, "repetition": REPETITION}
    sessions = prefill(prompt, [1] * prompt.n, together, **given)
    for policy, session in zip(together, sessions):
        alone = prefill(prompt, [1] * prompt.n, [policy], **given)[0]
        for one in (alone, session):
            one.extend([1])
            one.extend([1] * 5)
        for a, b in zip(alone.cache.layers, session.cache.layers):
            assert a.lengths == b.lengths
            np.testing.assert_array_equal(a.keys.numpy(), b.keys.numpy())
            np.testing.assert_array_equal(a.values.numpy(), b.values.numpy())
