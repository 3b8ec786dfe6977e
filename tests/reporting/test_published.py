"""Published scores stand beside a run of ours where everything is the same, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

import benchmarks
from evaluation import arguments
from evaluation.policies import chosen_policies
from kvevict.methods import build, describe
from reporting import published, sections, tables
from reporting.load import read_runs
from reporting.pool import pool
from tests.reporting.runs import write_run

LLAMA = "Meta-Llama-3.1-8B-Instruct"


def settings_of(*flags: str) -> dict[str, Any]:
    """What run.json says of a command line."""
    args = arguments.parse([*flags, "--output_dir", "x"])
    (policy,) = chosen_policies(args)
    ((_, settings),) = arguments.runs(args, [policy])
    return settings


def test_every_entry_can_be_met_by_a_command_or_is_of_the_harness():
    for one in published.known():
        assert one.source and one.models
        if one.benchmark == "lm_eval":
            continue
        benchmark = benchmarks.get(one.benchmark)
        assert one.scores.keys() <= benchmark.tasks.keys()
        for title, average in one.averages.items():
            assert set(average.tasks) <= benchmark.tasks.keys()
            assert set(average.tasks) == set(benchmark.averages.get(title, average.tasks))
        for score in (*one.scores.values(), *(each.score for each in one.averages.values())):
            assert 0 <= score <= benchmark.scale
    keys = [(o.benchmark, o.models, str(o.policy), str(o.setting)) for o in published.known()]
    assert len(set(keys)) == len(keys)


def test_averages_are_those_of_the_scores():
    for one in published.known():
        for average in one.averages.values():
            if set(average.tasks) <= one.scores.keys():
                mean = sum(one.scores[name] for name in average.tasks) / len(average.tasks)
                assert average.score == pytest.approx(mean, abs=2e-4)


@pytest.mark.parametrize(
    ("flags", "passkey"),
    [
        (["--enable_nacl_evict"], 1.0),
        (["--method", "nacl", "--keep_ratio", "0.2", "--seed", "3"], 1.0),
        (["--method", "full"], 1.0),
        (["--enable_nacl_evict", "--batch", "4", "--dtype", "bfloat16"], 1.0),
        (["--enable_nacl_evict", "--framework", "pytorch", "--decode_together"], 1.0),
        (["--enable_nacl_evict", "--model_path", f"elsewhere/{LLAMA}"], 1.0),
        (["--enable_nacl_evict", "--model_path", "Llama-3.1-8B"], None),
        (["--enable_nacl_evict", "--model_path", f"{LLAMA}-Q4"], None),
        (["--method", "nacl", "--keep_ratio", "0.1"], None),
        (["--method", "nacl", "--budget", "512"], None),
        (["--method", "nacl-paper", "--keep_ratio", "0.2"], None),
        (["--method", "snapkv", "--keep_ratio", "0.2"], None),
        (["--enable_nacl_evict", "--proxy_tokens", "question"], None),
        (["--enable_nacl_evict", "--min_eviction_seqlen", "0"], None),
        (["--enable_nacl_evict", "--compress", "context"], None),
        (["--enable_nacl_evict", "--chat", "on"], None),
        (["--enable_nacl_evict", "--max_length", "32000"], None),
        (["--enable_nacl_evict", "--no_truncation"], None),
        (["--enable_nacl_evict", "--benchmark", "longbench"], None),
    ],
)
def test_what_the_release_published_is_beside_its_own_setting_alone(flags, passkey):
    found = published.beside(settings_of(*flags))
    assert (found and found.scores["passkey"]) == passkey


@pytest.mark.parametrize(
    ("change", "qasper"),
    [
        ({}, 32.99),
        ({"code_similarity": "difflib"}, None),
        ({"chat": "auto"}, None),
        ({"length": 4096}, None),
        ({"benchmark": "longbench_e"}, None),
    ],
)
def test_settings_beside_the_method_count_too(change, qasper):
    flags = ["--benchmark", "longbench", "--chat", "off", "--model_path"]
    settings = settings_of(*flags, "mistralai/Mistral-7B-Instruct-v0.2")
    settings = {**settings, "code_similarity": "levenshtein", **change}
    found = published.beside(settings)
    assert (found and found.scores["qasper"]) == qasper


def test_short_tasks_count_their_shots():
    run = {"benchmark": "lm_eval", "model": "Llama-2-7b-hf", "shots": 25}
    run["policy"] = describe(build("h2o", keep_ratio=0.2, min_eviction_seqlen=0))
    assert published.beside(run).averages["Mean"].score == 52.8
    assert published.beside({**run, "shots": 10}) is None


def test_a_report_has_them_below_ours(tmp_path):
    for method in ("full", "nacl", "h2o"):
        for task in ("passkey", "number_string"):
            write_run(tmp_path / method, method, [True, False], task=task, model=LLAMA)
    (group,) = pool(read_runs(tmp_path))
    table = sections.tables(group)[0]
    assert table.header == ["Method", "Kept", "Retrieve.PassKey", "Retrieve.Number", "Mean"]
    theirs = {above[0]: row for above, row in zip(table.rows, table.rows[1:]) if "↳" in row[0]}
    assert theirs == {
        "full cache": ["↳ published", "", "1.000", "0.995", "–"],
        "NACL": ["↳ published", "", "1.000", "0.966", "–"],
    }
    assert table.notes[-1].startswith("Published by NACL's release, README.md in github.com")


def test_a_report_averages_groups_of_tasks(tmp_path):
    for task in ("passkey", "number_string", "kv_retrieval", "needle"):
        write_run(tmp_path / "full", "full", [task == "passkey"], task=task)
    (group,) = pool(read_runs(tmp_path))
    table = sections.tables(group)[0]
    assert table.header[-3:] == ["∞Bench average (3)", "without KV (2)", "Mean"]
    assert [cell.split()[0] for cell in table.rows[0][-3:]] == ["0.333", "0.500", "0.250"]
    assert not any("ublished" in note for note in table.notes)


def test_a_report_of_longbench_e_says_that_its_classes_are_pooled(tmp_path):
    write_run(tmp_path / "full", "full", [True, False])
    (group,) = pool(read_runs(tmp_path))
    cells = list(group.cells)
    note = "LongBench-E has several figures for a task, which compute_scores.py prints"
    assert tables.score_table(cells, "", benchmarks.get("longbench_e")).notes[-1].startswith(note)
    assert not any(note in each for each in sections.tables(group)[0].notes)
