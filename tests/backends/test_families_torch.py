"""Every family on PyTorch, against transformers' own arithmetic."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch has an environment of its own")
if not torch.cuda.is_available():  # transformers imports Triton, which reads this once
    os.environ.setdefault("TRITON_INTERPRET", "1")
transformers = pytest.importorskip("transformers", reason="PyTorch has an environment of its own")

from kvevict import InputError, backends, build, decode, evict, prefill  # noqa: E402
from kvevict.engine import prefilling  # noqa: E402
from kvevict.models import families  # noqa: E402
from tests.tiny_families import (  # noqa: E402
    CONFIGS,
    IDS,
    SIZES,
    assert_close,
    write_family,
    write_tokenizer,
)

METHODS = ("nacl", "laprox", "snapkv", "expected_attention", "keydiff", "defensivekv")


def theirs(path: Path) -> transformers.PreTrainedModel:
    """What transformers makes of a directory, without a word of ours."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits_of(model: transformers.PreTrainedModel, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def load(path: Path) -> backends.LoadedModel:
    return backends.load(path, device="cpu", framework="pytorch")


@pytest.fixture(params=CONFIGS)
def path(request, tmp_path: Path) -> Path:
    return write_family(tmp_path / "model", request.param)


def test_every_family_is_among_them() -> None:
    tested = {config["model_type"] for config in CONFIGS.values()}
    assert tested == {family.model_type for family in families.FAMILIES}


def test_logits_are_those_of_transformers(path, monkeypatch) -> None:
    expected, loaded = logits_of(theirs(path), IDS), load(path)
    assert_close(logits_of(loaded.model, IDS), expected)
    monkeypatch.setattr(prefilling, "CHUNK", 32)
    (session,) = prefill(loaded.decoder(), IDS[:90], [build("full")])
    assert_close(session.logits, expected[89])
    for position in range(90, len(IDS)):
        assert_close(session.extend([IDS[position]]), expected[position])


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("model_type", sorted({c["model_type"] for c in CONFIGS.values()}))
def test_what_transformers_saves(tmp_path, model_type, shards) -> None:
    torch.manual_seed(1)
    settings = {**SIZES, "initializer_range": 0.2, "pad_token_id": 9}
    config = transformers.AutoConfig.for_model(model_type, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # at their start they would not show
            torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(tmp_path, max_shard_size="60KB" if shards else "1GB")
    write_tokenizer(tmp_path)
    assert (len([*tmp_path.glob("*.safetensors")]) > 1) == shards
    assert_close(logits_of(load(tmp_path).model, IDS), logits_of(model, IDS))


def test_methods_keep_what_they_should_and_generate_agrees(path) -> None:
    loaded = load(path)
    decoder, tokens = loaded.decoder(), torch.tensor([IDS])
    kept = 25 * loaded.model.config.num_hidden_layers * SIZES["num_key_value_heads"]
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for method in METHODS:
        policy = build(method, keep_ratio=0.25, min_eviction_seqlen=0)
        (session,) = prefill(decoder, IDS, [policy])
        assert session.cache.entries == kept
        with evict(loaded.model, policy) as sessions:
            new = loaded.model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        assert new[0, len(IDS) :].tolist() == decode(session, 5)
        assert session.logits.isfinite().all()
        assert sessions[0].cache.entries == session.cache.entries


def test_evict_takes_transformers_own_models(path) -> None:
    model = theirs(path)
    with evict(model, build("full")), torch.no_grad():
        inside = model(torch.tensor([IDS])).logits[0].numpy()
    assert_close(inside, logits_of(model, IDS))


def assert_defaults_of_transformers(family: families.Family) -> None:
    config_class = getattr(transformers, family.architecture.replace("ForCausalLM", "Config"))
    config = config_class().to_dict()
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    llama = {"rope_theta": 10000.0, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
    expected = {**llama, "hidden_act": "silu", **family.defaults}
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_defaults_are_those_of_transformers(family) -> None:
    assert_defaults_of_transformers(family)


def test_the_guide_s_own_family(tmp_path, monkeypatch) -> None:
    """The entry and the line of CONTRIBUTING.md, as they stand there."""
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = guide.partition("## Adding a family")[2].partition("\n## ")[0]
    entry, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (family,) = eval(f"[{entry}]", {"Family": families.Family})
    ((name, config),) = eval(f"{{{line}}}").items()
    assert all(family.architecture != known.architecture for known in families.FAMILIES)
    with pytest.raises(InputError, match="this one is seed_oss"):
        write_family(tmp_path / "unknown", "llama", **config)
    assert_defaults_of_transformers(family)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, family))
    monkeypatch.setitem(CONFIGS, name, config)
    path = write_family(tmp_path / "model", name)
    expected = logits_of(theirs(path), IDS)
    (session,) = prefill(load(path).decoder(), IDS, [build("full")])
    assert_close(session.logits, expected[-1])
    transformers.AutoModelForCausalLM.from_pretrained(path).save_pretrained(tmp_path / "saved")
    write_tokenizer(tmp_path / "saved")
    assert_close(logits_of(load(tmp_path / "saved").model, IDS), expected)
    with pytest.raises(InputError, match="attention_bias=False is not supported in a Seed-OSS"):
        write_family(tmp_path / "other", name, attention_bias=False)


def test_a_class_of_no_family_is_refused_by_name() -> None:
    sizes = {k: SIZES[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**sizes, num_attention_heads=4, intermediate_size=96)
    )
    words = (
        r"LlamaForCausalLM, .* and SmolLM3ForCausalLM, .*, not transformers\..*GPTNeoXForCausalLM"
    )
    with pytest.raises(InputError, match=words):
        evict(model, build("nacl"))


def test_a_window_is_as_far_as_it_goes(tmp_path) -> None:
    path = write_family(tmp_path / "model", "mistral", sliding_window=60)
    assert load(path).max_positions == 60
    own = theirs(path)
    whole = write_family(tmp_path / "whole", "mistral", sliding_window=None)
    without = logits_of(theirs(whole), IDS)
    assert_close(logits_of(own, IDS)[:60], without[:60])  # up to there nothing is hidden
    assert np.abs(logits_of(own, IDS)[60:] - without[60:]).max() > 0.01
    for model in (own, load(path).model):
        with evict(model, build("nacl")), pytest.raises(InputError, match="60 positions"):
            model(torch.tensor([IDS[:61]]))


def test_yarn_reaches_beyond_max_position_embeddings(tmp_path) -> None:
    """As Qwen2.5 is published: 32,768 positions, and a factor to add by hand."""
    path = write_family(tmp_path / "model", "qwen2, tied, YaRN", max_position_embeddings=128)
    ids = IDS * 4
    loaded = load(path)
    assert loaded.max_positions == 512
    (session,) = prefill(loaded.decoder(), ids, [build("full")])
    assert_close(session.logits, logits_of(theirs(path), ids)[-1])


def test_a_million_positions_cost_nothing_until_they_are_used(tmp_path) -> None:
    path = write_family(tmp_path / "model", "llama", max_position_embeddings=1 << 20)
    loaded = load(path)
    held = sum(
        tensor.numel() * tensor.element_size()
        for module in loaded.model.modules()
        for tensor in vars(module).values()
        if isinstance(tensor, torch.Tensor)
    )
    held += sum(buffer.numel() * buffer.element_size() for buffer in loaded.model.buffers())
    assert held < 4096
    assert loaded.max_positions == 1 << 20


def test_padding_beyond_the_vocabulary(tmp_path) -> None:
    path = write_family(tmp_path / "model", "llama", pad_token_id=SIZES["vocab_size"])
    assert load(path).model.config.pad_token_id is None
