"""Models of transformers that others have changed, and what is used where it does not belong."""

from __future__ import annotations

import pytest

from kvevict import Full, InputError, evict
from tests.backends.torch_model import answer, nacl, prompt, tiny, torch


def enter(model) -> None:
    with evict(model, nacl()):
        pass


def int8(model):
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def float8(model):
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    return model


def of_a_library(model):
    """As bitsandbytes puts its layers in the place of others."""

    class Linear4bit(torch.nn.Linear): ...

    model.lm_head.__class__ = Linear4bit
    return model


def weight_of_a_library(model):
    """As torchao puts its tensors in the place of weights."""

    class Packed(torch.nn.Parameter): ...

    head = model.lm_head
    head.weight = Packed(head.weight.detach())
    return model


def hooked(model):
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def offloaded(model):
    return pytest.importorskip("accelerate").cpu_offload(model)


def adapted(model):
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["o_proj"]), model)
    return model


def wrapped(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj"]))


CHANGED = {
    int8: "self_attn.q_proj is a torch.ao.*Linear: load it unquantised",
    float8: r"model\.layers\.1\.mlp\.up_proj\.weight is float8_e4m3fn",
    of_a_library: r"lm_head is a .*\.Linear4bit: load it unquantised",
    weight_of_a_library: r"lm_head\.weight is Packed",
    hooked: r"pass by the hooks of model\.layers\.0",
    offloaded: "load the model onto one device",
    adapted: "o_proj is a peft.*, with adapters merged",
    wrapped: "neither wrapped nor compiled, not peft",
    torch.compile: "neither wrapped nor compiled, not torch._dynamo",
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("change", CHANGED, ids=lambda change: change.__name__)
def test_a_model_that_others_have_changed(change) -> None:
    with pytest.raises(InputError, match=CHANGED[change]):
        enter(change(tiny()))


def test_merged_adapters() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False)
    merged = peft.get_peft_model(tiny(), settings).merge_and_unload()
    expected = answer(merged, prompt())
    with evict(merged, Full()):
        assert answer(merged, prompt()) == expected != answer(tiny(), prompt())


PARTS = {"model": lambda m: m, "layers": lambda m: m.model, "layer": lambda m: m.model.layers[1]}


@pytest.mark.parametrize("part", PARTS)
def test_a_compiled_part(part: str) -> None:
    model = tiny()
    with evict(model, nacl()):
        expected = answer(model, prompt())
    PARTS[part](model).compile(backend="eager")
    plain = answer(model, prompt())
    with evict(model, nacl()):
        assert answer(model, prompt()) == expected
    assert answer(model, prompt()) == plain != expected


def test_a_model_in_train_mode() -> None:
    model = tiny().train()
    with evict(model, nacl()), pytest.raises(InputError, match=r"call model\.eval\(\) first"):
        model(prompt())


def test_a_cache_after_its_context() -> None:
    model = tiny()
    with evict(model, nacl()):
        past = model(prompt()).past_key_values
    for call in (model, model.generate):
        with pytest.raises(InputError, match="past_key_values goes on within evict alone"):
            call(prompt(count=103), past_key_values=past)
    with evict(model, nacl()):
        assert model(prompt(1, 3), past_key_values=past).past_key_values.get_seq_length() == 103


def test_a_cache_of_another_model() -> None:
    model, other = tiny(), tiny()
    with evict(model, nacl()), evict(other, nacl()):
        past = model(prompt()).past_key_values
        with pytest.raises(InputError, match="comes from another model"):
            other(prompt(1, 3), past_key_values=past)


def test_a_policy_by_name() -> None:
    with pytest.raises(InputError, match=r"evict takes a policy, such as .*, not 'nacl'"):
        evict(tiny(), "nacl")
