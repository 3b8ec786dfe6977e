"""Methods by name, compositions, records, and the YAML files of the papers' defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from kvevict import METHODS, InputError, build
from kvevict.methods import describe
from kvevict.methods.laprox import OutputScore
from kvevict.methods.nacl import ProxyAndRandom
from kvevict.methods.parts import LayerShared, ModelWide
from kvevict.methods.registry import NAMED_PARTS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_every_method_has_its_file() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_files_hold_the_defaults(method: str) -> None:
    settings = yaml.safe_load((CONFIGS / f"{method}.yaml").read_text())
    assert settings["method"] == method
    assert build(**settings) == build(method)


@pytest.mark.parametrize("method", METHODS)
def test_records_tell_policies_apart(method: str) -> None:
    record = describe(build(method))
    assert json.loads(json.dumps(record)) == record
    assert record["name"] == method
    assert describe(build(method)) == record
    assert describe(build(method, seed=1)) != record
    assert describe(build(method, min_eviction_seqlen=1)) != record


def test_records_tell_parts_apart() -> None:
    records = [
        describe(build("adakv", **settings))
        for settings in ({}, {"alpha": 0.3}, {"window": 16}, {"kernel": 5}, {"keep_ratio": 0.3})
    ]
    assert len({json.dumps(record) for record in records}) == len(records)


def test_parts_compose() -> None:
    policy = build("laprox", allocator={"adakv": {"alpha": 0.5}}, keep_ratio=0.1)
    assert isinstance(policy.scorer, OutputScore)
    assert policy.allocator == LayerShared(0.5)
    assert policy.keep_ratio == 0.1
    assert policy.name == "laprox-adakv_allocator"
    sampling = build("nacl", scorer="laprox", keep_ratio=0.4)
    assert isinstance(sampling.scorer, OutputScore)
    assert sampling.selector == build("nacl", keep_ratio=0.4).selector


def test_a_part_scales_with_the_policys_ratio() -> None:
    policy = build("snapkv", selector="nacl", keep_ratio=0.4)
    assert isinstance(policy.selector, ProxyAndRandom)
    assert policy.selector == build("nacl", keep_ratio=0.4).selector


def test_only_the_final_combination_has_to_fit() -> None:
    """NACL's draw cannot go with a model-wide budget, but here it is replaced as well."""
    policy = build("nacl", allocator="laprox", selector="snapkv", keep_ratio=0.2)
    assert isinstance(policy.allocator, ModelWide)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("snapvk", {}, "unknown method 'snapvk'; choose among full, nacl"),
        (["snapkv"], {}, "unknown method"),
        ("snapkv", {"windows": 3}, "method 'snapkv' has no setting 'windows'; it has keep_ratio"),
        ("full", {"keep_ratio": 0.5}, "has no setting 'keep_ratio'"),
        ("snapkv", {"window": "wide"}, "window_size must be a whole number, not 'wide'"),
        ("snapkv", {"window_size": 2.5}, "window_size must be a whole number, not 2.5"),
        ("snapkv", {"window_size": True}, "window_size must be a whole number, not True"),
        ("snapkv", {"window_size": None}, "window_size must be a whole number, not None"),
        ("snapkv", {"window": 3, "window_size": 3}, "'window_size' is given twice, also as"),
        ("h2o", {"decode_slack": 0.5}, "decode_slack must be a whole number, not 0.5"),
        ("tova", {"seed": 1.5}, "seed must be a whole number"),
        ("nacl", {"temperature": float("nan")}, "temperature must be a number, not nan"),
        ("nacl", {"keep_ratio": "0.2"}, "keep_ratio must be a number between 0 and 1, not '0.2'"),
        ("nacl", {"keep_ratio": True}, "keep_ratio must be a number between 0 and 1, not True"),
        ("laprox", {"project": 1}, "project must be true or false, not 1"),
        ("snapkv", {"scorer": "snapvk"}, "unknown scorer 'snapvk'; choose among .*window_score"),
        ("snapkv", {"allocator": {"layer_shared": {"beta": 3}}}, "'layer_shared' has no setting"),
        ("snapkv", {"scorer": ["h2o"]}, r"scorer must be a name or .*, not \['h2o'\]"),
        ("snapkv", {"scorer": {"nacl": {"window": 3}}}, "method 'nacl' has no setting 'window'"),
        ("nacl", {"allocator": "laprox"}, "model-wide"),
    ],
)
def test_bad_input(method: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(method, **settings)


def test_a_part_without_settings_of_its_own() -> None:
    """YAML gives None where nothing follows the colon."""
    plain = build("h2o", scorer="full")
    assert build("h2o", scorer=yaml.safe_load("full:")) == plain


def test_the_names_of_parts() -> None:
    """As configs/README.md lists them; the variants' beside them."""
    text = (CONFIGS / "README.md").read_text("utf-8")
    for role, known in NAMED_PARTS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{role}` |")]
        assert set(re.findall(r"`(\w+)`", row)) == {role, *known} - {"proxy_variant", "rows_score"}


@pytest.mark.parametrize(
    ("role", "name", "settings", "part"),
    [
        ("allocator", "equal", {}, build("snapkv").allocator),
        ("allocator", "layer_shared", {"alpha": 0.4}, build("adakv", alpha=0.4).allocator),
        ("allocator", "pyramid", {"beta": 5}, build("pyramidkv", beta=5).allocator),
        ("scorer", "window_score", {"window": 9}, build("snapkv", window=9).scorer),
        (
            "selector",
            "top_k",
            {"sinks": 2, "recent": 3},
            build("random", sinks=2, recent=3).selector,
        ),
        ("selector", "proxy_and_random", {}, build("nacl").selector),
    ],
)
def test_a_part_by_its_own_name(role: str, name: str, settings: dict, part: object) -> None:
    policy = build("tova", **{role: {name: settings}})
    assert getattr(policy, role) == part
    assert policy.name == f"tova-{name}"
    assert policy.decode_slack == 0, "what the method says beside its parts stays"
    if not settings:
        assert build("tova", **{role: name}) == policy


def test_earlier_names_are_understood() -> None:
    now = build("criticaladakv", window_size=9, kernel_size=3, alpha_safeguard=0.4)
    assert build("criticaladakv", window=9, kernel=3, alpha=0.4) == now
    assert build("criticalkv", first_share=0.3) == build("criticalkv", first_stage_ratio=0.3)
    assert build("random", sinks=7) == build("random", n_sink=7)
