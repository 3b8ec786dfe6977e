"""What transformers' `forward` is given under eviction: honoured, or refused by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event

import pytest

from kvevict import Full, InputError, StreamingLLM, evict
from tests.backends.torch_model import answer, assert_close, nacl, prompt, tiny, torch, transformers


@pytest.fixture(scope="module")
def model() -> transformers.LlamaForCausalLM:
    return tiny()


def last_logits(model, *args, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(*args, **kwargs).logits[0, -1]


def of_every_query(n: int, hidden: slice = slice(0)) -> torch.Tensor:
    """A causal mask, bool ``[1, 1, n, n]``, but for some keys."""
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    mask[..., hidden] = False
    return mask


LEFT = slice(0, 7)
HONOURED = {
    "ids by place": {},
    "positions": {"position_ids": torch.arange(100)[None]},
    "positions ahead": {"position_ids": torch.arange(100)[None] + 300},
    "places": {"cache_position": torch.arange(100)},
    "mask": {"attention_mask": torch.ones(1, 100)},
    "mask of queries": {"attention_mask": of_every_query(100)},
    "mask to add": {"attention_mask": torch.zeros(1, 1, 100, 100).masked_fill(
        ~of_every_query(100), torch.finfo(torch.float32).min)},
    "padding": {"attention_mask": of_every_query(100, LEFT)[:, 0, -1].long()},
    "padding, positions": {
        "attention_mask": of_every_query(100, LEFT)[:, 0, -1],
        "position_ids": torch.arange(-7, 93)[None].clamp(min=0) + 4,
    },
    "padding by query": {"attention_mask": of_every_query(100, LEFT)},
    "nothing said": {"output_attentions": False, "token_type_ids": None},
}  # fmt: skip


@pytest.mark.parametrize("case", HONOURED)
def test_what_forward_honours(model, case: str) -> None:
    """With the full cache the model's own logits, at the prompt and behind it."""
    expected = last_logits(model, prompt(), **HONOURED[case])
    with evict(model, Full()):
        assert_close(last_logits(model, prompt(), **HONOURED[case]), expected)


def with_bias() -> torch.Tensor:
    return torch.arange(-99.0, 1.0).expand(1, 1, 100, 100) / 64


REFUSED = {
    "every second position": ({"position_ids": torch.arange(100)[None] * 2}, "go up by one"),
    "positions of two": ({"position_ids": torch.ones(2, 100).long()}, r"position_ids is \[2, 100"),
    "places": ({"cache_position": torch.arange(1, 101)}, "cache_position is not 0 … 99"),
    "a hole": ({"attention_mask": of_every_query(100, slice(50, 60))}, "padding goes on the left"),
    "a hole for some": (
        {"attention_mask": of_every_query(100) & (torch.arange(100)[:, None] != 70)
         | torch.eye(100, dtype=torch.bool)},
        "causal attention alone",
    ),
    "later tokens seen": ({"attention_mask": torch.ones(1, 1, 100, 100)[..., :] > 0}, "causal"),
    "a bias": ({"attention_mask": with_bias()}, "adds a bias"),
    "padding on the right": ({"attention_mask": (torch.arange(100) < 95)[None]}, "on the left"),
    "padding alone": ({"attention_mask": torch.zeros(1, 100)}, "the prompt has no tokens"),
    "a short mask": ({"attention_mask": torch.ones(1, 99)}, r"attention_mask is \[1, 99\]"),
    "by head": ({"attention_mask": torch.ones(1, 8, 100, 100) > 0}, r"is not \[1, 1, 100, 100\]"),
    "masks by kind": ({"attention_mask": {"full_attention": None}}, "attention_mask is dict"),
    "token types": ({"token_type_ids": torch.zeros(1, 100)}, "does not honour token_type_ids"),
    "not causal": ({"is_causal": False}, "does not honour is_causal"),
    "twice": ({"inputs_embeds": torch.ones(1, 100, 128)}, "either input_ids or inputs_embeds"),
    "no tokens": ({"input_ids": torch.ones(1, 0).long()}, "the prompt has no tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_forward_refuses(model, case: str) -> None:
    given, sentence = REFUSED[case]
    with evict(model, Full()), pytest.raises(InputError, match=sentence):
        model(**{"input_ids": prompt(), **given})


def test_what_the_configuration_asks_for(model, monkeypatch) -> None:
    monkeypatch.setattr(model.config, "output_hidden_states", True)
    with evict(model, Full()), pytest.raises(InputError, match="honour output_hidden_states"):
        model(prompt())


def test_labels_are_of_every_token(model) -> None:
    with torch.no_grad():
        expected = model(prompt(), labels=prompt()).loss
        with evict(model, nacl()):
            assert_close(model(prompt(), labels=prompt()).loss, expected)


@pytest.fixture
def turns() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two turns with padding before each: ids, mask and positions."""
    ids = torch.cat([torch.zeros(1, 4).long(), prompt(), torch.zeros(1, 6).long(), prompt(1, 9)], 1)
    mask = torch.ones_like(ids)
    mask[:, :4] = mask[:, 104:110] = 0
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def test_padding_before_each_turn(model, turns) -> None:
    ids, mask, positions = turns
    expected = last_logits(model, ids, attention_mask=mask, position_ids=positions)
    first = {"attention_mask": mask[:, :104], "position_ids": positions[:, :104]}
    second = {"attention_mask": mask, "position_ids": positions[:, 104:]}
    with evict(model, Full()) as sessions:
        past = model(ids[:, :104], **first).past_key_values
        got = last_logits(model, ids[:, 104:], **second, past_key_values=past)
        assert (past.get_seq_length(), sessions[0].cache.seen) == (119, 109)
    assert_close(got, expected)


def test_a_second_turn_that_says_otherwise_than_the_first(model, turns) -> None:
    ids, mask, positions = turns
    first = {"attention_mask": mask[:, :104], "position_ids": positions[:, :104]}
    hidden = mask.clone()
    hidden[:, 50] = 0
    cases = [
        ({"attention_mask": mask}, "do not go on where past_key_values ends"),
        ({"attention_mask": mask, "position_ids": positions[:, 104:] + 1}, "do not go on"),
        ({"attention_mask": hidden, "position_ids": positions[:, 104:]}, "its padding elsewhere"),
        ({"position_ids": positions[:, 104:]}, "its padding elsewhere"),
        ({"attention_mask": mask[:, 104:]}, r"attention_mask is \[1, 15\]"),
    ]
    with evict(model, Full()):
        past = model(ids[:, :104], **first).past_key_values
        for second, sentence in cases:
            with pytest.raises(InputError, match=sentence):
                model(ids[:, 104:], **second, past_key_values=past)
            assert past.get_seq_length() == 104


# Calls that overlap.


def in_threads(*functions) -> list:
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(f) for f in functions]]


def test_prompts_in_several_threads(model) -> None:
    lengths = [100, 37, 160]
    with evict(model, StreamingLLM(0.3, min_eviction_seqlen=0)):
        expected = [answer(model, prompt(n, n), max_new_tokens=20) for n in lengths]
        calls = [partial(answer, model, prompt(n, n), max_new_tokens=20) for n in lengths]
        assert in_threads(*calls) == expected


def test_contexts_that_overlap_in_threads(model) -> None:
    """Each thread is in its own, whichever ends first."""
    policies = [StreamingLLM(share, min_eviction_seqlen=0) for share in (0.2, 0.6)]
    expected = []
    for policy in policies:
        with evict(model, policy):
            expected.append(answer(model, prompt()))
    entered, left, plain = Barrier(3), Event(), answer(model, prompt())

    def first() -> list[int]:
        with evict(model, policies[0]):
            entered.wait()
            said = answer(model, prompt())
        left.set()
        return said

    def second() -> list[int]:
        with evict(model, policies[1]):
            entered.wait()
            left.wait()
            return answer(model, prompt())

    def neither() -> None:
        entered.wait()
        with pytest.raises(InputError, match=r"2 contexts of evict are open .* by this thread"):
            model(prompt())

    assert in_threads(first, second, neither)[:2] == expected
    assert answer(model, prompt()) == plain
    assert "forward" not in vars(model.model) and "generate" not in vars(model)


def test_two_calls_at_a_time_on_one_sequence(model) -> None:
    with evict(model, nacl()):
        past = model(prompt()).past_key_values
        with past.sequences.held(), pytest.raises(InputError, match="two calls at a time"):
            model(prompt(1, 3), past_key_values=past)
        model(prompt(1, 3), past_key_values=past)
    assert past.get_seq_length() == 103
