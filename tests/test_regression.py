"""Two built-in models under the main methods, held to what was measured.

Six prompts of 1,000 tokens hide an answer early or late. As in an evaluation, all methods share a
prompt's prefill and keep a fifth of the cache, a tenth with the model that anyone would use. Tests
elsewhere hold the parts to their formulas; this one holds the whole to its figures, so that what
breaks in a way that nobody thought of is a red test and not a slightly worse table. Another model,
or a method changed on purpose, moves them: ``PYTHONPATH=src:. python tests/test_regression.py``
measures anew.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import infinitebench
from benchmarks.synthetic import make_example
from evaluation.capture import token_texts
from kvevict import backends
from kvevict.engine import decode_together, prefill
from kvevict.engine.session import Session
from kvevict.methods import build
from reporting.kept import answer_tokens

LENGTH = 1000
PROMPTS = [(task, at) for task in ("passkey", "number_string", "needle") for at in (0.3, 0.9)]


class Figures(NamedTuple):
    """Means over the prompts.

    Attributes:
        log_prob: of the answer's tokens, each given the true ones before it. It moves with every
            key, value and position in the cache, also where the answer stays right.
        kept: share of the entries where the answer stands in the prompt.
        score: of the greedy answer.
        excess: entries held beyond that part of the prompt's (``full``: all), rounded down by head.
    """

    log_prob: float
    kept: float
    score: float
    excess: float


SMALL, REAL = "smollm2-135m-longctx", "qwen2.5-coder-0.5b-instruct"
KEEP = {SMALL: 5, REAL: 10}  # one entry of so many
PINNED = {
    SMALL: {
        "full": Figures(-0.0005, 1.0, 1.0, 0),
        "nacl": Figures(-0.7393, 0.5174, 1 / 2, 0),
        "laprox": Figures(-0.5751, 0.5093, 1 / 2, 0),
        "snapkv": Figures(-0.6767, 0.6022, 1 / 2, 0),
        "adakv": Figures(-0.4725, 0.5627, 1 / 2, 0),
        "tova": Figures(-0.0064, 0.5914, 1.0, 0),
        "h2o": Figures(-2.1981, 0.0981, 1 / 6, 0),
        "streamingllm": Figures(-0.9580, 0.5, 2 / 3, 0),
        "random": Figures(-1.1277, 0.1622, 1 / 3, 0),
    },
    REAL: {
        "full": Figures(-0.0104, 1.0, 1.0, 0),
        "nacl": Figures(-0.7064, 0.4392, 1 / 2, 0),
        "laprox": Figures(-0.5312, 0.3905, 1 / 3, 0),
        "fade": Figures(-0.0108, 0.6712, 1.0, 0),
        "snapkv": Figures(-0.6777, 0.4092, 1 / 3, 0),
        "tova": Figures(-0.0847, 0.5437, 5 / 6, 0),
        "h2o": Figures(-1.6274, 0.0389, 1 / 6, 0),
        "keydiff": Figures(-0.0116, 0.5825, 1.0, 0),
    },
}
# One or two threads and MKL's other code path change no digit above. Noise of 0.01% on the weights,
# a thousand times float32's rounding, moved log_prob by up to 0.0015, kept by 0.0002 and no score
# in two trials: six times as much, and one answer of six, is let pass.
MARGIN = Figures(0.01, 0.002, 0.17, 0)


@pytest.mark.parametrize("method", PINNED[SMALL])
def test_figures_are_those_measured(method: str) -> None:
    check(SMALL, method)


@pytest.mark.builtin(REAL)
@pytest.mark.parametrize("method", PINNED[REAL])
def test_figures_of_a_real_model(method: str) -> None:
    check(REAL, method)


def check(model: str, method: str) -> None:
    rows = zip(Figures._fields, measure(model)[method], PINNED[model][method], MARGIN)
    off = [
        f"{name} is {found:.4f}, not {pinned:.4f} ± {margin}"
        for name, found, pinned, margin in rows
        if not abs(found - pinned) <= margin  # NaN is off too
    ]
    assert not off, f"{method}: {'; '.join(off)}"


@cache
def measure(model: str) -> dict[str, Figures]:
    """The figures of each method."""
    methods, part = list(PINNED[model]), KEEP[model]
    loaded = backends.load(model, dtype="float32")
    decoder, tokenizer = loaded.decoder(), loaded.tokenizer
    evicting = {"keep_ratio": 1 / part, "min_eviction_seqlen": 0}
    policies = [build(m) if m == "full" else build(m, **evicting) for m in methods]
    heads = decoder.layers * decoder.kv_heads
    rows = []
    for index, (name, depth) in enumerate(PROMPTS):
        text, label = make_prompt(name, index, depth, tokenizer)
        ids = tokenizer.encode(text)
        answer = tokenizer.encode(f"{text} {label}")[len(ids) :]
        where = answer_tokens(token_texts(tokenizer.decode, ids), label)
        sessions = prefill(decoder, ids, policies, index, record=True)
        kept = [share_kept(session, where) for session in sessions]
        budgets = [len(ids) if m == "full" else len(ids) // part for m in methods]
        excess = [s.cache.entries - heads * budget for s, budget in zip(sessions, budgets)]
        log_probs = [log_prob(session.fork(), answer) for session in sessions]
        decoded = decode_together(sessions, len(answer), set(loaded.eos_ids))
        task, reference = infinitebench.TASKS[name], {"ground_truth": label}
        scores = [task.score(tokenizer.decode(ids), reference) for ids in decoded]
        rows.append(list(zip(log_probs, kept, scores, excess)))
    means = np.mean(rows, axis=0)
    return {method: Figures(*map(float, mean)) for method, mean in zip(methods, means)}


def make_prompt(name: str, index: int, depth: float, tokenizer) -> tuple[str, str]:
    """An example's prompt of at most ``LENGTH`` tokens, and its answer."""
    fields = make_example(
        name,
        index,
        LENGTH,
        seed=1,
        depth=depth,
        count_tokens=lambda text: len(tokenizer.encode(text)),
    )
    prompt = infinitebench.TASKS[name].prompt(fields)
    return prompt.text, str(fields["answer"])


def share_kept(session: Session, where: list[int]) -> float:
    layers = session.cache.layers
    held = sum(int(np.isin(layer.positions.numpy(), where).sum()) for layer in layers)
    return held / (len(where) * sum(len(layer.lengths) for layer in layers))


def log_prob(session: Session, answer: list[int]) -> float:
    """Mean log-probability of the answer's tokens, each given the true ones before it."""
    model = session.model
    logits = [session.logits]
    if len(answer) > 1:
        hidden = session.extend_hidden(model.embed(answer[:-1]))
        logits += [model.logits(hidden[:, :end]) for end in range(1, len(answer))]
    return float(np.mean([float(x[t] - x.logsumexp(-1)) for x, t in zip(logits, answer)]))


if __name__ == "__main__":
    for model in PINNED:
        for method, figures in measure(model).items():
            print(model, method, figures)
