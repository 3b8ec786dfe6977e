"""A random PEFT adapter merged at load, against the same update written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kvevict.errors import InputError
from kvevict.models.checkpoint import Checkpoint
from kvevict.models.config import normalise_config
from kvevict.models.lora import merge
from kvevict.models.weights import LazyTensor
from tests.reference_llama import DIMS, random_weights

RANK = 4
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


@pytest.fixture
def base():
    weights = random_weights(np.random.default_rng(1))
    tensors = {name: LazyTensor(array.shape, lambda a=array: a) for name, array in weights.items()}
    config = normalise_config({**DIMS, "model_type": "llama", "rope_theta": 1e5}, "base")
    return Checkpoint("base", config, tensors, None, (0,))


@pytest.fixture
def factors(base):
    rng = np.random.default_rng(2)
    made = {}
    for layer in range(DIMS["num_hidden_layers"]):
        for target in TARGETS:
            module = f"model.layers.{layer}.{target}"
            out, width = base.tensors[f"{module}.weight"]().shape
            made[f"{module}.lora_A"] = rng.normal(size=(RANK, width)).astype(np.float32)
            made[f"{module}.lora_B"] = rng.normal(size=(out, RANK)).astype(np.float32)
    return made


def write_adapter(path: Path, factors: dict, **settings) -> Path:
    path.mkdir()
    tensors = {f"base_model.model.{name}.weight": array for name, array in factors.items()}
    save_file(tensors, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, **settings}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8.0)])
def test_update_is_added_to_the_adapted_weights_only(tmp_path, base, factors, rslora, scale):
    merged = merge(base, write_adapter(tmp_path / "a", factors, use_rslora=rslora))
    assert merged.tensors.keys() == base.tensors.keys()
    for name, read in merged.tensors.items():
        expected = base.tensors[name]().astype(np.float64)
        module = name[: -len(".weight")]
        if module.endswith(TARGETS):
            a, b = factors[f"{module}.lora_A"], factors[f"{module}.lora_B"]
            expected = expected + scale * np.einsum("or,ri->oi", b, a, dtype=np.float64)
        assert read().dtype == np.float32
        np.testing.assert_allclose(read(), expected, rtol=1e-5, atol=1e-4)


def test_overrides_replace_the_base_configuration(tmp_path, base, factors):
    overrides = {"rope_theta": 4e6, "max_position_embeddings": 32768}
    merged = merge(base, write_adapter(tmp_path / "a", factors, base_config_overrides=overrides))
    assert merged.config == {**base.config, **overrides}
    assert base.config["rope_theta"] == 1e5


def test_same_weights_as_peft(tmp_path, base, factors):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DIMS))
    weights = {name: torch.tensor(read()) for name, read in base.tensors.items()}
    model.load_state_dict(weights)
    path = write_adapter(tmp_path / "a", factors, target_modules=[t.split(".")[1] for t in TARGETS])
    theirs = peft.PeftModel.from_pretrained(model, path).merge_and_unload().state_dict()
    for name, read in merge(base, path).tensors.items():
        np.testing.assert_allclose(read(), theirs[name].numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora is not supported"),
        ({"base_config_overrides": {"hidden_size": 8}}, "hidden_size is not supported"),
        ({"lora_alpha": None}, "lacks r or lora_alpha"),
        ({"r": 0}, "lacks r or lora_alpha"),
    ],
)
def test_refused_settings(tmp_path, base, factors, settings, words):
    with pytest.raises(InputError, match=words):
        merge(base, write_adapter(tmp_path / "a", factors, **settings))


def test_refused_tensors(tmp_path, base, factors):
    key = "model.layers.0.self_attn.q_proj.lora_B"
    with pytest.raises(InputError, match="is not part of a LoRA adapter"):
        merge(base, write_adapter(tmp_path / "a", {**factors, "model.norm": np.ones(2)}))
    with pytest.raises(InputError, match="does not fit base"):
        half = {name: array for name, array in factors.items() if name != key}
        merge(base, write_adapter(tmp_path / "b", half))
    with pytest.raises(InputError, match=r"B \[3, 4\] times A \[4, 64\] is not \[64, 64\]"):
        small = {**factors, key: np.ones((3, RANK), np.float32)}
        merge(base, write_adapter(tmp_path / "c", small))
