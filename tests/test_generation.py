"""`generate`: many prompts through one batch, in whatever framework is installed."""

from __future__ import annotations

import pytest

import kvevict
from kvevict import H2O, NACL, Full, InputError, KVzip, SnapKV, environment, generate
from kvevict.engine import memory, prefill
from tests.engine.greedy import alone, assert_same_tokens

PROMPTS = [[(i * i + 7 * i * n) % 250 + 2 for i in range(n)] for n in (40, 9, 75, 33, 60)]


def policy(kind=SnapKV):
    return kind() if kind is Full else kind(keep_ratio=0.3, min_eviction_seqlen=0)


@pytest.mark.parametrize("kind", [Full, NACL, H2O])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_each_prompt_has_the_answer_that_it_has_alone(tiny_decoder, kind, batch_size) -> None:
    answers = generate(tiny_decoder, PROMPTS, policy(kind), 12, batch_size=batch_size, example=5)
    for number, (ids, answer) in enumerate(zip(PROMPTS, answers), start=5):
        session = prefill(tiny_decoder, ids, [policy(kind)], number)[0]
        assert_same_tokens(answer, *alone(session, 12))


def test_an_end_and_a_prompt_by_itself(tiny_decoder) -> None:
    (whole,) = generate(tiny_decoder, PROMPTS[:1], policy(), 12)
    assert generate(tiny_decoder, PROMPTS[0], policy(), 12) == whole
    end = whole[5]
    assert generate(tiny_decoder, PROMPTS[0], policy(), 12, eos={end}) == whole[: whole.index(end)]
    assert generate(tiny_decoder, [], policy()) == []


def test_a_loaded_model_knows_its_ends(request) -> None:
    pytest.importorskip("paddle")
    model = request.getfixturevalue("builtin_model")
    texts = [
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        for asked in ("What is the capital of France?", "Tell me a long story.")
    ]
    answers = generate(model, [model.tokenizer.encode(text) for text in texts], Full(), 24)
    assert "Paris" in model.tokenizer.decode(answers[0])
    assert len(answers[0]) < len(answers[1]) == 24
    assert not {*model.eos_ids} & {*answers[0], *answers[1]}


def test_no_more_are_begun_than_memory_holds(tiny_decoder, monkeypatch) -> None:
    """By what is free, and by what a sequence takes."""
    running, most = [], []
    needed = memory.needed_bytes(tiny_decoder, [policy()], 75, 12)

    def made(model, ids, policies, number, repetition):
        running.append(number)
        return prefill(model, ids, policies, number)

    def free(like):
        most.append(len(running))
        return needed * (3 if len(running) < 2 else 1)

    monkeypatch.setattr(kvevict.generation, "prefill", made)
    monkeypatch.setattr(memory, "free_bytes", free)
    answers = generate(tiny_decoder, PROMPTS, policy(), 12)
    assert answers == generate(tiny_decoder, PROMPTS, policy(), 12, batch_size=2)
    assert most[:3] == [1, 2, 2]  # looked at before each prompt but those that stand alone


def test_what_a_sequence_takes_is_no_less_than_its_cache(tiny_decoder) -> None:
    for kind in (Full, SnapKV):
        (session,) = prefill(tiny_decoder, PROMPTS[2], [policy(kind)])
        session.cache.reserve(12)
        needed = memory.needed_bytes(tiny_decoder, [policy(kind)], 75, 12)
        assert session.cache.nbytes < needed < session.cache.nbytes + 2**20
    same = {"budget": 9}
    one, other = (
        [memory.needed_bytes(tiny_decoder, [kind(**same)], tokens, 12) for tokens in (0, 75)]
        for kind in (SnapKV, KVzip)
    )
    assert one[0] == other[0]  # of no prompt nothing is repeated
    assert one[1] < other[1] < 2 * one[1]
    assert memory.free_bytes(session.cache.layers[0].keys) == pytest.approx(
        environment.free_host_bytes(), rel=0.2
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "smollm2"}, "takes a model that load returned, not a str"),
        ({"policy": "snapkv"}, "takes a policy, such as .*, not 'snapkv'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number of at least 1, not 1.5"),
        ({"prompts": [[1, 2], []]}, "prompt 1 is no list of token ids"),
        ({"prompts": ["text"]}, "prompt 0 is no list of token ids"),
        ({"prompts": [[3] * 5000]}, "prompt 0 has 5000 tokens, .* positions"),
    ],
)
def test_bad_input(tiny_decoder, changed: dict, sentence: str) -> None:
    given = {"model": tiny_decoder, "prompts": PROMPTS, "policy": policy(), **changed}
    with pytest.raises(InputError, match=sentence):
        generate(**given)
