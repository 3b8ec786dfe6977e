"""What PaddleNLP's `forward` is given under eviction: honoured, or refused by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier, Event

import numpy as np
import paddle
import pytest

from kvevict import Full, InputError, StreamingLLM, evict
from tests.backends.test_paddle_generate import generate, nacl, prompt

N, LEFT = 100, 7


def causal(hidden: slice = slice(0)) -> paddle.Tensor:
    """Bool ``[1, 1, N, N]``, but for some keys."""
    mask = np.tril(np.ones((1, 1, N, N), bool))
    mask[..., hidden] = False
    return paddle.to_tensor(mask)


def places(start: int = 0, step: int = 1) -> paddle.Tensor:
    return paddle.arange(start, start + N * step, step).unsqueeze(0)


def logits(model, ids: paddle.Tensor, **kwargs) -> np.ndarray:
    with paddle.no_grad():
        return model(ids, return_dict=True, **kwargs).logits[0, -1].numpy()


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """To float32's rounding: logits are sums of some hundred products, layer upon layer."""
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


HONOURED = {
    "ids by place": {},
    "positions": {"position_ids": places()},
    "positions ahead": {"position_ids": places(300)},
    "mask": {"attention_mask": paddle.ones([1, N], dtype="int64")},
    "mask of queries": {"attention_mask": causal()},
    "mask of queries, without heads": {"attention_mask": causal()[:, 0].astype("float32")},
    "padding": {"attention_mask": causal(slice(LEFT))[:, 0, -1].astype("int64")},
    "padding, positions": {
        "attention_mask": causal(slice(LEFT))[:, 0, -1],
        "position_ids": (places(-LEFT)).clip(min=0),
    },
    "padding by query": {"attention_mask": causal(slice(LEFT))},
    "nothing said": {"output_attentions": False, "labels": None},
}


@pytest.mark.parametrize("case", HONOURED)
def test_what_forward_honours(tiny_model, case: str) -> None:
    """With the full cache the model's own logits."""
    expected = logits(tiny_model, prompt(), **HONOURED[case])
    with evict(tiny_model, Full()):
        assert_close(logits(tiny_model, prompt(), **HONOURED[case]), expected)


def test_the_mask_that_generate_makes_by_itself(tiny_model) -> None:
    """Zeros that are added to the scores, for which the model's own layers hide every token."""
    added = paddle.zeros([1, 1, 1, N])
    expected = logits(tiny_model, prompt()[:, LEFT:])
    with evict(tiny_model, Full()):
        assert_close(
            logits(tiny_model, prompt(), attention_mask=added), logits(tiny_model, prompt())
        )
        added[..., :LEFT] = -1e4
        assert_close(logits(tiny_model, prompt(), attention_mask=added), expected)


REFUSED = {
    "every second position": ({"position_ids": places(0, 2)}, "go up by one"),
    "a hole": ({"attention_mask": causal(slice(50, 60))}, "padding goes on the left"),
    "later tokens seen": ({"attention_mask": paddle.ones([1, 1, N, N])}, "causal attention alone"),
    "padding on the right": ({"attention_mask": places() < 95}, "padding goes on the left"),
    "padding alone": ({"attention_mask": paddle.zeros([1, N])}, "the prompt has no tokens"),
    "a short mask": ({"attention_mask": places()[:, 1:] > 0}, r"attention_mask is \[1, 99\]"),
    "labels": ({"labels": prompt()}, "does not honour labels"),
    "ends of rows": ({"attn_mask_startend_row_indices": places()}, "honour attn_mask_startend"),
    "attentions": ({"output_attentions": True}, "does not honour output_attentions"),
    "hidden states": ({"output_hidden_states": True}, "does not honour output_hidden_states"),
    "twice": ({"inputs_embeds": paddle.ones([1, N, 128])}, "either input_ids or inputs_embeds"),
    "unknown": ({"cache_position": places()}, "unexpected keyword argument 'cache_position'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_forward_refuses(tiny_model, case: str) -> None:
    given, sentence = REFUSED[case]
    with evict(tiny_model, Full()), pytest.raises(InputError, match=sentence):
        tiny_model(prompt(), **given)


def test_padding_before_each_turn(tiny_model) -> None:
    pad = paddle.zeros([1, LEFT], dtype="int64")
    ids = paddle.concat([pad, prompt(), pad, prompt(1, 9)], axis=1)
    mask = (paddle.arange(123).unsqueeze(0) >= LEFT).astype("int64")
    mask[:, LEFT + N : LEFT + N + LEFT] = 0
    positions = (mask.cumsum(1) - 1).clip(min=0)
    expected = logits(tiny_model, ids, attention_mask=mask, position_ids=positions)
    first = {"attention_mask": mask[:, : LEFT + N], "position_ids": positions[:, : LEFT + N]}
    second = {"attention_mask": mask, "position_ids": positions[:, LEFT + N :]}
    with evict(tiny_model, Full()) as sessions:
        past = tiny_model(ids[:, : LEFT + N], **first)[-1]
        with pytest.raises(InputError, match="do not go on where past_key_values ends"):
            tiny_model(ids[:, LEFT + N :], attention_mask=mask, past_key_values=past)
        got = logits(tiny_model, ids[:, LEFT + N :], **second, past_key_values=past)
        assert sessions[0].cache.seen == N + 9
    assert_close(got, expected)


# Calls that overlap.


def in_threads(*functions) -> list:
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(f) for f in functions]]


def test_prompts_in_several_threads(tiny_model) -> None:
    prompts = [prompt(n, n) for n in (100, 37, 160)]
    with evict(tiny_model, StreamingLLM(0.3, min_eviction_seqlen=0)):
        expected = [generate(tiny_model, ids) for ids in prompts]
        calls = [lambda ids=ids: generate(tiny_model, ids) for ids in prompts]
        assert in_threads(*calls) == expected


def test_contexts_that_overlap_in_threads(tiny_model) -> None:
    """Each thread is in its own, whichever ends first."""
    policies = [StreamingLLM(share, min_eviction_seqlen=0) for share in (0.2, 0.6)]
    expected = []
    for policy in policies:
        with evict(tiny_model, policy):
            expected.append(generate(tiny_model, prompt()))
    entered, left = Barrier(2), Event()

    def first() -> list[int]:
        with evict(tiny_model, policies[0]):
            entered.wait()
            said = generate(tiny_model, prompt())
        left.set()
        return said

    def second() -> list[int]:
        with evict(tiny_model, policies[1]):
            entered.wait()
            left.wait()
            return generate(tiny_model, prompt())

    assert in_threads(first, second) == expected
    assert "forward" not in vars(tiny_model)


# Models that others have changed, and what is used where it does not belong.


def train(model) -> None:
    model.train()


def of_a_library(model) -> None:
    class LoRALinear(paddle.nn.Linear): ...

    model.llama.layers[1].self_attn.o_proj.__class__ = LoRALinear


def hooked(model) -> None:
    model.llama.layers[0].register_forward_post_hook(lambda *_: None)


def double(model) -> None:
    model.llama.norm.to(dtype="float64")


def patched(model) -> None:
    vars(model.llama.layers[1])["forward"] = lambda *_: None


CHANGED = {
    train: r"call model\.eval\(\) first",
    of_a_library: r"layers\.1\.self_attn\.o_proj is a .*LoRALinear: load it unquantised",
    hooked: r"pass by the hooks of llama\.layers\.0",
    double: r"llama\.norm\.weight is float64",
    patched: r"the forward of llama\.layers\.1",
}


@pytest.mark.parametrize("change", CHANGED, ids=lambda change: change.__name__)
def test_a_model_that_others_have_changed(tiny_model, change) -> None:
    model = deepcopy(tiny_model)
    change(model)
    with pytest.raises(InputError, match=CHANGED[change]), evict(model, nacl()):
        model(prompt())


def test_a_cache_after_its_context(tiny_model) -> None:
    with evict(tiny_model, nacl()):
        past = tiny_model(prompt())[-1]
    with pytest.raises(InputError, match="past_key_values is of evict: it goes on within"):
        tiny_model(prompt(1, 3), past_key_values=past)
    with evict(tiny_model, nacl()):
        tiny_model(prompt(1, 3), past_key_values=past)


def test_a_cache_of_another(tiny_model) -> None:
    other = deepcopy(tiny_model)
    own = tiny_model(prompt(), use_cache=True)[-1]
    with evict(tiny_model, nacl()), evict(other, nacl()):
        past = tiny_model(prompt())[-1]
        with pytest.raises(InputError, match="of another model"):
            other(prompt(1, 3), past_key_values=past)
        with pytest.raises(InputError, match="has a cache of its own"):
            tiny_model(prompt(1, 3), past_key_values=own)
