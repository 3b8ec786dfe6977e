"""kvpress's answers and ours on the same prompts, from the commands to the tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kvevict.methods import build
from tests.evaluation import tiny

pytest.importorskip("torch", reason="kvpress runs on PyTorch")
pytest.importorskip("kvpress", reason="kvpress is not installed")

ROOT = Path(__file__).parents[2]
SHARED = ["snapkv", "adakv", "tova", "streamingllm", "keynorm", "keydiff", "expected_attention"]
CONFIG = """\
- method: full
- &all {{method: snapkv, keep_ratio: [0.5, 0.2], min_eviction_seqlen: 0, window_size: 8}}
{}
- {{method: tova, keep_ratio: [0.5, 0.2], min_eviction_seqlen: 0, decode_slack: null}}
- {{method: kvzip, keep_ratio: [0.5, 0.2], min_eviction_seqlen: 0, chunk_size: 150}}
- {{method: random, keep_ratio: [0.5, 0.2], min_eviction_seqlen: 0}}
"""
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
LIMIT = 300  # seconds; a process that hangs fails the test


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """Flags of both commands: a tiny model, two tasks, and every method of both."""
    path = tmp_path_factory.mktemp("kvpress")
    model = write_qwen2(path / "model")
    for task in ("hotpotqa", "samsum"):
        rows = [
            {"input": f"Who is {i}?", "context": " ".join(str(i + k**3) for k in range(90)),
             "answers": [f"{i}"], "all_classes": None, "length": 90}
            for i in range(3)
        ]  # fmt: skip
        tiny.write_lines(path / "data" / "longbench" / f"{task}.jsonl", *rows)
    plain = [name for name in SHARED if name not in ("snapkv", "tova")]
    lines = [
        f"- {{method: {name}, keep_ratio: [0.5, 0.2], min_eviction_seqlen: 0}}" for name in plain
    ]
    (path / "all.yaml").write_text(CONFIG.format("\n".join(lines)))
    return [
        "--framework=pytorch", "--device=cpu", "--benchmark=longbench", "--task=hotpotqa,samsum",
        "--compress=context", f"--config={path / 'all.yaml'}", f"--model_path={model}",
        f"--data_dir={path / 'data'}", f"--output_dir={path / 'out'}",
    ]  # fmt: skip


def write_qwen2(path: Path) -> Path:
    """A random Qwen2 whose queries have a direction in common, where RoPE hardly turns them.

    kvpress masks entries by a key that is opposed to all queries, and there has to be one.
    """
    names = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6}
    tiny.write_llama(path, scale=0.1, **names)
    weights = load_file(path / "model.safetensors")
    common = np.zeros((tiny.HEADS, tiny.HEAD_DIM), "float32")
    common[:, 5:8] = 4.0
    for layer in range(tiny.LAYERS):
        attention = f"model.layers.{layer}.self_attn"
        weights[f"{attention}.q_proj.bias"] = common.reshape(-1)
        for name in ("k_proj", "v_proj"):
            weights[f"{attention}.{name}.bias"] = np.zeros(tiny.KV_HEADS * tiny.HEAD_DIM, "float32")
    save_file(weights, str(path / "model.safetensors"))
    (path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    return path


def run(script: str, *arguments: object, status: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_both_answer_alike_and_stand_in_one_table(flags, tmp_path):
    out = flags[-1].partition("=")[2]
    assert (
        "of kvpress_scores.py has answered"
        in run("scripts/study/agreement.py", "--output_dir", ours(flags), status=2).stderr
    )
    first = run("scripts/study/kvpress_scores.py", *flags, "--limit_s=0.001")
    assert " kept" not in first.stderr  # no example began
    rest = run("scripts/study/kvpress_scores.py", *flags)
    assert rest.stderr.count(" kept") == 3 * 6  # full, a half, a fifth
    again = run("scripts/study/kvpress_scores.py", *flags)
    assert " kept" not in again.stderr

    table = run("scripts/study/agreement.py", "--output_dir", out).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in table.splitlines() if re.match(r"\| [a-z_]+ \| [0-9]", line)]  # fmt: skip
    assert [row[0] for row in rows] == ["full", *2 * sorted([*SHARED, "kvzip"])]
    for method, _, examples, mine, theirs, _, same in rows:
        assert int(examples) == 6
        # kvpress always keeps the last token under TOVA; equal tokens have keys of equal length.
        least = 50 if method in ("tova", "keynorm") else 100
        assert int(same.rstrip("%")) >= least, (method, same)
        assert mine == theirs or least < 100, method
    said = {path.read_text() for path in Path(out).glob("kvpress-*/preds_samsum.jsonl")}
    assert len(said) > 10  # methods make a difference

    scores = tmp_path / "scores.jsonl.gz"
    run("src/report.py", "scores", "--output_dir", out, "--out", scores)
    losses = run("scripts/study/losses.py", scores, "--reference", "random").stdout
    assert losses.count("| kvpress: snapkv |") == 2 and "kvpress: full" not in losses
    held = {record["settings"]["policy"]["name"]: record["tasks"]["hotpotqa"]["cache_bytes"]
            for path in Path(out).glob("kvpress-*0.2*/run.json")
            for record in [json.loads(path.read_text())]}  # fmt: skip
    assert held["kvpress: adakv"] > 4 * held["kvpress: snapkv"] > 0  # it frees nothing


def ours(flags: list[str]) -> str:
    run("src/eval_llama3.py", *flags)
    return flags[-1].partition("=")[2]


def test_what_it_cannot_do_is_one_sentence(flags, tmp_path):
    script = "scripts/study/kvpress_scores.py"
    other = [flag for flag in flags if "compress" not in flag]
    assert "give --compress context" in run(script, *other, status=2).stderr
    assert "--limit_s" in run(script, *flags, "--limit_s=soon", status=2).stderr
    assert "--nll is of our own" in run(script, *flags, "--nll", status=2).stderr


def test_a_press_keeps_as_many_entries_as_the_policy():
    sys.path.insert(0, str(ROOT / "scripts" / "bench"))
    try:
        from presses import PRESSES, press_of
    finally:
        sys.path.pop(0)
    from kvpress.utils import compute_n_kept

    for name in set(PRESSES) - {"kvzip", "expected_attention-layer_shared"}:
        for size in ({"keep_ratio": r} for r in (0.05, 0.1, 0.2, 0.25, 0.3, 0.7, 0.9)):
            policy = build(name, min_eviction_seqlen=0, **size)
            for tokens in (100, 301, 1000, 4093, 30_000):
                press = press_of(policy, tokens, 0)
                kept = compute_n_kept(tokens, press.compression_ratio)
                assert kept == policy.entries(tokens), (name, size, tokens)
    policy = build("kvzip", budget=700)
    for tokens, heads in ((701, 3), (4099, 56), (30_001, 256)):
        evicted = int(tokens * heads * press_of(policy, tokens, 0).compression_ratio)
        assert tokens * heads - evicted == 700 * heads
    assert press_of(policy, 500, 0).compression_ratio * 500 < 1
