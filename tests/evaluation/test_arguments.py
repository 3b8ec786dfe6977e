"""Flags become the policies and the runs that they name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evaluation import arguments
from evaluation.policies import NACL_FLAGS, chosen_policies
from kvevict.errors import InputError
from kvevict.methods import (
    H2O,
    NACL,
    Full,
    LaProx,
    NACLPaper,
    SnapKV,
    describe,
)
from tests.evaluation.flags import names, policies, several

SRC = Path(__file__).parents[2] / "src"
RELEASE = (
    "--data_dir ../data --output_dir ../results --model_path m --model_name n --start_idx 0 "
    "--stop_idx 5 --verbose --device cpu --proxy_tokens_ratio 0.01 --proxy_token_keep_ratio 0.12 "
    "--random_token_keep_ratio 0.07 --token_protect_ratio 0.01 --sink_tokens 256 "
    "--min_eviction_seqlen 2048 --task all --enable_nacl_evict"
)


def test_the_flags_of_the_release_with_their_defaults_are_our_defaults():
    assert policies(RELEASE) == policies("--enable_nacl_evict") == [NACL()]


def test_without_a_method_the_cache_is_full():
    assert policies("") == policies("--method full --min_eviction_seqlen 9 --seed 3") == [Full()]


@pytest.mark.parametrize("flag", [*NACL_FLAGS])
def test_every_flag_of_nacl_ends_in_its_policy(flag):
    value = {"sink_tokens": 3, "proxy_tokens": 11}.get(flag, 0.02)
    assert policies(f"--enable_nacl_evict --{flag} {value}") == [NACL(**{flag: value})]
    assert policies(f"--method nacl --{flag} {value}") != [NACL()]


def test_common_flags_end_in_every_policy():
    flags = "--min_eviction_seqlen 7 --seed 5 --decode_slack 2"
    common = {"min_eviction_seqlen": 7, "seed": 5, "decode_slack": 2}
    assert policies(f"--method nacl,h2o {flags}") == [NACL(**common), H2O(**common)]


def test_the_benchmark_says_which_prompts_are_left_whole():
    for name, tokens in (("infinitebench", 2048), ("longbench", 0)):
        flags = f"--benchmark {name} --method nacl,h2o --keep_ratio 0.2"
        assert {policy.min_eviction_seqlen for policy in policies(flags)} == {tokens}
        (named,) = set(policies(f"{flags} --method nacl --min_eviction_seqlen 7"))
        assert named.min_eviction_seqlen == 7


def test_methods_and_ratios_are_crossed_and_the_full_cache_comes_once():
    wanted = [Full(), NACL(0.1), NACL(0.2), LaProx(keep_ratio=0.1), LaProx(keep_ratio=0.2)]
    assert policies("--method full,nacl,laprox,nacl --keep_ratio 0.1,0.2") == wanted


def test_proxies_in_tokens(tmp_path, capsys):
    assert policies("--method nacl --proxy_tokens question") == [NACL(proxy_tokens="question")]
    both = policies("--method nacl,nacl-paper,h2o --proxy_tokens 11")
    assert both == [NACL(proxy_tokens=11), NACLPaper(proxy_tokens=11), H2O()]
    config = several(tmp_path, "{method: nacl, proxy: question, keep_ratio: 0.1}")
    assert policies(config) == [NACL(0.1, proxy_tokens="question")]
    assert policies(f"{config} --proxy_tokens 5") == [NACL(0.1, proxy_tokens=5)]
    capsys.readouterr()
    policies("--method nacl-paper --keep_ratio 0.05,0.1,0.3")
    assert capsys.readouterr().err == (
        "note: nacl-paper: its paper keeps 10 to 30%; 0.05 takes the proportions of the nearest\n"
    )


def test_budgets_in_entries(tmp_path):
    found = policies("--method full,h2o,laprox --budget 64,128")
    assert found == [Full(), *(one(budget=b) for one in (H2O, LaProx) for b in (64, 128))]
    assert {policy.min_eviction_seqlen for policy in found[1:]} == {0}
    (named,) = policies("--method nacl --budget 64 --min_eviction_seqlen 9")
    assert (named.budget, named.keep_ratio, named.min_eviction_seqlen) == (64, None, 9)
    # One way to give a budget takes the place of the other.
    assert policies("--config configs/laprox.yaml --budget 64") == [LaProx(budget=64)]
    config = several(tmp_path, "{method: laprox, budget: [64, 128]}")
    assert policies(config) == [LaProx(budget=64), LaProx(budget=128)]
    assert policies(f"{config} --keep_ratio 0.1") == [LaProx(0.1)]
    directories = names("--model_path m --method full,nacl --budget 64,128")
    assert [name.rpartition("_")[0] for name in directories] == [
        "m_full",
        "m_nacl-b64",
        "m_nacl-b128",
    ]
    records = [describe(policy) for policy in found]
    assert [record.get("budget") for record in records] == [None, 64, 128, 64, 128]
    assert [record["keep_ratio"] for record in records] == [1.0] + [None] * 4
    assert "budget" not in records[0]


def test_types_are_crossed_with_methods_and_the_full_cache(tmp_path):
    chosen = policies("--method full,snapkv --keep_ratio 0.1 --kv_dtype auto,int8")
    assert [(p.name, p.kv_dtype) for p in chosen] == [
        (name, kv_dtype) for name in ("full", "snapkv") for kv_dtype in (None, "int8")
    ]
    args = arguments.parse(["--method", "snapkv", "--kv_dtype", "int8"])
    ((name, settings),) = arguments.runs(args, chosen_policies(args))
    assert "_snapkv-0.2-int8_" in name
    assert settings["policy"]["kv_dtype"] == "int8"
    file = tmp_path / "a.yaml"
    file.write_text("- {method: full, kv_dtype: [null, int4]}\n- {method: nacl, kv_dtype: fp8}\n")
    of_file = policies(f"--config {file}")
    assert [p.kv_dtype for p in of_file] == [None, "int4", "fp8"]
    assert {p.kv_dtype for p in policies(f"--config {file} --kv_dtype int2")} == {"int2"}
    assert "kv_dtype" not in describe(SnapKV())


def test_what_changes_no_prediction_makes_no_other_run():
    assert (
        names("--nll") == names("--answer_prefix on") == names("") != names("--answer_prefix off")
    )


def test_runs_are_named_readably_and_apart():
    found = names("--model_path org/m --method full,nacl,h2o --keep_ratio 0.05,0.5")
    readable = [name.rpartition("_")[0] for name in found]
    assert readable == ["m_full", "m_nacl-0.05", "m_nacl-0.5", "m_h2o-0.05", "m_h2o-0.5"]
    others = (
        "--seed 1",
        "--max_length 9",
        "--no_truncation",
        "--compress context",
        "--sink_tokens 5",
        "--dtype float16",
    )
    apart = {
        names(f"--model_path {path} --method nacl {flag}")[0]
        for path in ("org/m", "other/m")
        for flag in ("", *others)
    }
    assert len(apart) == 14
    assert any(name.startswith("m_nacl-0.2-context_") for name in apart)


def test_a_name_of_ones_own_is_taken_or_begins_the_names():
    assert names("--model_name mine --method nacl") == ["mine"]
    assert [n[:12] for n in names("--model_name mine --method nacl,h2o")] == [
        "mine_nacl-0.",
        "mine_h2o-0.2",
    ]


def test_data_range_and_place_do_not_change_the_run():
    other = "--start_idx 3 --stop_idx 5 --data_dir d --output_dir o --verbose --task passkey"
    assert names("--method nacl") == names(f"--method nacl {other}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method nacle", "unknown method 'nacle'; choose among full, nacl"),
        ("--method=", "unknown method ''"),
        ("--method nacl,", "unknown method ''"),
        ("--method nacl --keep_ratio 1.5", "keep_ratio must lie between 0 and 1, not 1.5"),
        ("--method h2o --keep_ratio 0", "keep_ratio must be above 0"),
        ("--method h2o --keep_ratio nan", "keep_ratio must be a number between 0 and 1"),
        ("--method h2o --keep_ratio 0.1,,0.2", "numbers separated by commas, not ''"),
        ("--method h2o --keep_ratio=", "numbers separated by commas, not ''"),
        ("--method h2o --keep_ratio 20%", "numbers separated by commas, not '20%'"),
        ("--keep_ratio 0.2", "--keep_ratio needs a --method that evicts"),
        ("--budget 64", "--budget needs a --method that evicts"),
        ("--method h2o --budget 64,x", "--budget takes whole numbers separated by commas, not 'x'"),
        ("--method h2o --budget 64.5", "--budget takes whole numbers separated by commas"),
        ("--method h2o --budget 0", "--budget takes whole numbers separated by commas, not '0'"),
        ("--method h2o --budget 64 --keep_ratio 0.2", "as keep_ratio or in entries as budget, not"),
        ("--enable_nacl_evict --proxy_tokens_ratio 2", "proxy_tokens_ratio must lie between"),
        ("--enable_nacl_evict --proxy_token_keep_ratio 0.95", "must add up to between 0 and 1"),
        ("--enable_nacl_evict --sink_tokens -1", "sink_tokens must not be negative"),
        ("--enable_nacl_evict --min_eviction_seqlen -1", "min_eviction_seqlen must not be neg"),
        ("--method nacl --proxy_tokens all", "--proxy_tokens: a number or question, not 'all'"),
        ("--method nacl --proxy_tokens 0", "proxy_tokens must be at least 1, not 0"),
        ("--method h2o --proxy_tokens 4", "--proxy_tokens is a setting of nacl, which"),
        ("--method nacl --proxy_tokens 4 --proxy_tokens_ratio 0.1", "both say which rows score"),
        ("--method nacl-paper --proxy_token_keep_ratio 0.1", "is a setting of nacl, which"),
        ("--method nacl --proxy_tokens question --compress context", "--compress context does not"),
        ("--method h2o --sink_tokens 4", "--sink_tokens is a setting of nacl"),
        ("--start_idx -1", "--start_idx and --stop_idx must name a range"),
        ("--start_idx 4 --stop_idx 4", "--start_idx and --stop_idx must name a range"),
        ("--start_idx x", "argument --start_idx: invalid int value: 'x'"),
        ("--max_length 0", "--max_length must be positive"),
        ("--dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("--compress all", "argument --compress: invalid choice: 'all'"),
        ("--keep 0.2", "unrecognized arguments: --keep 0.2"),
        ("--config nowhere.yaml", "cannot read nowhere.yaml: No such file"),
        ("--config configs/nacl.yaml --method h2o", "--config is of nacl, the flags ask for h2o"),
    ],
)  # fmt: skip
def test_bad_flags_are_named(flags, message):
    with pytest.raises(InputError) as error:
        policies(flags)
    assert message in str(error.value)


def test_methods_of_unlike_defaults_are_not_compared_unawares():
    with pytest.raises(InputError) as error:
        policies("--method full,nacl,laprox,h2o")
    assert str(error.value) == (
        "methods differ in their default ratio (nacl 0.2, laprox 0.05, h2o 0.2); give --keep_ratio "
        "or --budget"
    )
    with pytest.raises(InputError, match=r"\(nacl 0.28, h2o 0.2\)"):
        policies("--method nacl,h2o --random_token_keep_ratio 0.15")
    assert policies("--method full,laprox") == [Full(), LaProx()]
    assert len(policies("--method nacl,laprox --keep_ratio 0.2,0.1")) == 4


def test_help_shows_the_defaults_and_imports_no_framework():
    code = (
        "import sys, eval_llama3\ntry: eval_llama3.main(['--help'])\nfinally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True)
    assert not {"paddle", "paddlenlp", "torch"} & set(done.stdout.split())
    text = " ".join(done.stdout.split())
    three = "with --keep_ratio only the proportions of the three shares count"
    assert f"of nacl: share of the cache kept by score; {three} (default: 0.12)" in text
    assert text.count(three) == 3
    assert "shares of the cache to keep, separated by commas (default: 0.2; laprox 0.05)" in text
    assert "are left whole (default: the benchmark's)" in text
    assert "(default: None)" not in text


def test_defaults_are_the_checkouts_wherever_the_command_is_started(monkeypatch, tmp_path):
    root = Path(__file__).resolve().parents[2]
    for place in (root, root / "src", tmp_path):
        monkeypatch.chdir(place)
        args = arguments.parse([])
        assert args.data_dir.resolve() == root / "data"
        assert args.output_dir.resolve() == root / "results"
    monkeypatch.chdir(root / "src")
    assert str(arguments.parse([]).output_dir) == "../results"


def test_paths_are_written_alike_in_all_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for flag in ("data_dir", "output_dir", "config"):
        assert getattr(arguments.parse([f"--{flag}=~/a b/"]), flag) == tmp_path / "a b"
        with pytest.raises(InputError, match=f"argument --{flag}: a path is empty"):
            arguments.parse([f"--{flag}="])
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for name in ("~/model", "~/model/", str(tmp_path / "link"), "model"):
        monkeypatch.chdir(tmp_path)
        args = arguments.parse([f"--model_path={name}"])
        ((run, settings),) = arguments.runs(args, chosen_policies(args))
        assert run.startswith("model_full_") and settings["model_path"] == str(tmp_path / "model")
