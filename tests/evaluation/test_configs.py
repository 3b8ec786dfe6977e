"""YAML files become the policies that they name; flags go before them."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.policies import CONFIGS
from kvevict.errors import InputError
from kvevict.methods import (
    H2O,
    METHODS,
    NACL,
    AdaKV,
    Full,
    LaProx,
    SnapKV,
    describe,
)
from tests.evaluation.flags import names, policies, several

DATA = Path(__file__).parents[2] / "docs" / "data"


def test_flags_override_the_config():
    config = "--config configs/nacl.yaml"
    assert policies(config) == policies(f"{config} --enable_nacl_evict") == [NACL()]
    changed = policies(f"{config} --sink_tokens 9 --seed 4 --keep_ratio 0.1")
    assert changed == [NACL(sink_tokens=9, seed=4, keep_ratio=0.1)]


@pytest.mark.parametrize("method", METHODS)
def test_each_config_is_that_of_its_method(method):
    assert [p.name for p in policies(f"--config configs/{method}.yaml")] == [method]


@pytest.mark.parametrize(
    ("study", "count"),
    [("real", 49), ("budgets", 37), ("long", 41), ("bytes", 52), ("forms", 6), ("table2", 10)],
)
def test_studies_hold_the_settings_that_they_promise(study, count):
    found = policies(f"--config configs/studies/{study}.yaml --min_eviction_seqlen 0")
    assert len(found) == len({json.dumps(describe(policy)) for policy in found}) == count
    assert "fade" in {policy.name for policy in found}
    assert {policy.decode_slack for policy in found} == {None}, "all decode as one batch"
    if study == "bytes":
        bits = {policy.kv_dtype for policy in found}
        assert bits == {None, "int8", "int4", "int2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\n\na: *nobody", ", line 3: not YAML (found undefined alias 'nobody')"),
        (b"method: nacl\n\tseed: 1", ", line 2: not YAML (found character"),
        (b"\xff", " is not YAML"),
        (b"method: nacl\nseed: 2024-13-01", " is not YAML"),
        (b"keep_ratio: 0.2", ': no "method" is named'),
        (b"method: [nacl]", ': no "method" is named'),
        (b"- nacl", ', entry 1: no "method" is named'),
        (b"method: nacl\n1: 2", ": a setting's name is not a text"),
        (b"method: nacl\nsinks: 3", ": method 'nacl' has no setting 'sinks'; it has keep_ratio"),
        (
            b"method: nacl\nkeep_ratio: half",
            "keep_ratio must be a number between 0 and 1, not 'half'",
        ),
        (
            b"method: nacl\nkeep_ratio: [0.1, x]",
            "keep_ratio must be a number between 0 and 1, not 'x'",
        ),
        (b"method: nacl\nkeep_ratio: []", "setting 'keep_ratio' of nacl is an empty list"),
        (b"method: nacl\nbudget: []", "setting 'budget' of nacl is an empty list"),
        (b"method: nacl\nbudget: [0.2]", "budget must be a whole number, not 0.2"),
        (b"method: h2o\nkeep_ratio: 0.2\nbudget: 3", "as keep_ratio or in entries as budget"),
        (b"method: full\nbudget: 3", "method 'full' has no setting 'budget'"),
        (b"method: nacl\nseed: [0, 0.5]", "seed must be a whole number"),
        (b"method: h2o\nrecent_share: [0.5, half]", "recent_share must be a number"),
        (b"[]", ': no "method" is named'),
        (b"- method: h2o\n- keep_ratio: 1", ', entry 2: no "method" is named'),
        (b"- method: h2o\n- 5: 1\n  method: nacl", ", entry 2: a setting's name is not a text"),
        (b"- method: h2o\n- method: nacle", ", entry 2: unknown method 'nacle'"),
        (
            b"- method: full\n- {method: snapkv, window: 0}",
            ", entry 2: window_size must be at least 1",
        ),
        (b"method: h2o\nrecent_share: 3", ": recent_share must"),
        (b"method: nacl\nseed: null", "seed must be a whole number, not None"),
        (b"method: criticalkv\nepsilon:", "epsilon must be a number, not None"),
        (b"method: laprox\nproject: 2", "project must be true or false, not 2"),
        (b"method: h2o\nscorer: {}", "scorer must be a name or {name: {its settings}}, not {}"),
        (b"method: h2o\nscorer: {laprox: 3}", "scorer must be a name or {name: {its settings}}"),
        (b"method: h2o\nselector: {nacl: , h2o: }", "selector must be a name or {name: {"),
    ],
)
def test_a_bad_config_is_named(tmp_path, text, message):
    file = tmp_path / "own.yaml"
    file.write_bytes(text)
    with pytest.raises(InputError) as error:
        policies(f"--config {file}")
    assert str(error.value).startswith(str(file)) and message in str(error.value)


def test_a_bad_flag_is_not_put_down_to_the_file():
    with pytest.raises(InputError, match=r"^keep_ratio must lie between 0 and 1, not 7"):
        policies("--config configs/nacl.yaml --keep_ratio 7")


def test_the_readmes_example(tmp_path):
    text = (CONFIGS / "README.md").read_text("utf-8")
    found = policies(several(tmp_path, text.split("```yaml\n")[1].split("```")[0]))
    assert [policy.name for policy in found] == [
        "full",
        *["laprox"] * 2,
        *["nacl"] * 6,
        *["snapkv-laprox_scorer-layer_shared"] * 2,
    ]
    composed, laprox = found[-2], LaProx(keep_ratio=0.2)
    assert composed.scorer == replace(laprox.scorer, kernel_size=1) != laprox.scorer
    assert (composed.selector, composed.allocator) == (SnapKV(0.2).selector, AdaKV(0.2).allocator)
    assert {policy.min_eviction_seqlen for policy in found[1:]} == {1024}


def test_a_file_may_give_each_method_its_own_ratio(tmp_path):
    assert policies(several(tmp_path, "- method: nacl\n- method: laprox\n")) == [NACL(), LaProx()]


def test_a_config_may_compose_parts_of_methods(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("method: laprox\nallocator: adakv\nkeep_ratio: 0.3")
    (policy,) = policies(f"--config {file}")
    assert policy.name == "laprox-adakv_allocator"
    assert names(f"--config {file} --model_path m")[0].startswith("m_laprox-adakv_allocator-0.3_")


def test_a_config_may_be_a_list_with_lists_of_ratios_and_seeds(tmp_path):
    config = several(
        tmp_path,
        "- method: full\n"
        "- &all {method: nacl, keep_ratio: [0.1, 0.3], seed: [0, 1]}\n"
        "- {<<: *all, method: h2o, seed: 0, decode_slack: null}\n"
        "- {method: nacl, keep_ratio: 0.3, seed: 1}\n",
    )
    expected = [NACL(ratio, seed=seed) for ratio in (0.1, 0.3) for seed in (0, 1)]
    expected += [H2O(0.1, decode_slack=None), H2O(0.3, decode_slack=None)]
    assert policies(config) == [Full(), *expected]
    assert len(set(names(config))) == 7


def test_flags_override_every_entry_that_they_fit(tmp_path):
    config = several(tmp_path, "- method: full\n- method: nacl\n  seed: [1, 2]\n- method: h2o\n")
    found = policies(f"{config} --keep_ratio 0.1 --min_eviction_seqlen 9 --sink_tokens 3")
    common = {"min_eviction_seqlen": 9}
    seeds = [NACL(0.1, sink_tokens=3, seed=seed, **common) for seed in (1, 2)]
    assert found == [Full(), *seeds, H2O(0.1, **common)]
    assert policies(f"{config} --seed 5") == [Full(), NACL(seed=5), H2O(seed=5)]
    assert policies(f"{config} --method full,nacl,h2o") == policies(config)
    with pytest.raises(InputError, match="--config is of full,nacl,h2o, the flags ask for h2o"):
        policies(f"{config} --method h2o")


# Methods that came after the study.
LATER = {
    "nacl-paper",
    "fade",
    "defensivekv",
    "layerdefensivekv",
    "expected_attention",
    "kvzip",
    "keydiff",
}


def test_the_studys_settings():
    """What docs/tiny_model.md says it compares: 14 methods, and 16 variants of two of them."""
    found = policies("--config configs/studies/study.yaml")
    assert len(found) == len(set(found)) == 109
    assert {policy.name.partition("-")[0] for policy in found} == set(METHODS) - LATER
    assert {policy.decode_slack for policy in found} == {None}
    assert {policy.keep_ratio for policy in found} == {1.0, 0.5, 0.2, 0.1, 0.05}
    assert {policy.min_eviction_seqlen for policy in found if policy.name != "full"} == {1024}
    seeds = {(p.name, p.keep_ratio, p.seed) for p in found if p.name in ("nacl", "random")}
    assert len(seeds) == 24


@pytest.mark.parametrize("study", ["study", "needle", "heads"])
def test_records_are_those_of_earlier_runs(study):
    """What was recorded under the names of then: a run begun with them goes on."""
    scores = gzip.decompress((DATA / study / "scores.jsonl.gz").read_bytes()).splitlines()
    recorded = [json.loads(line)["settings"]["policy"] for line in scores]
    found = [describe(policy) for policy in policies(f"--config configs/studies/{study}.yaml")]
    assert {json.dumps(r, sort_keys=True) for r in recorded} == {
        json.dumps(r, sort_keys=True) for r in found
    }
