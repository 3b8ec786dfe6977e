"""The built-in long-context adapter: its files, and the scripts that train and score it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvevict.models.weights import read_safetensors

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts" / "training"
ADAPTER = ROOT / "assets" / "smollm2-135m-longctx"
HIDDEN, KV, INNER, LAYERS = 576, 192, 1536, 30
SHAPES = {  # SmolLM2-135M: [out, in]
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def test_adapter_covers_every_linear_layer_and_is_small():
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    tensors = read_safetensors(ADAPTER / "adapter_model.safetensors")
    for layer in range(LAYERS):
        for module, (n_out, n_in) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            down = tensors.pop(f"{name}.lora_A.weight")()
            up = tensors.pop(f"{name}.lora_B.weight")()
            assert down.shape == (config["r"], n_in)
            assert up.shape == (n_out, config["r"])
            assert np.isfinite(down).all() and np.isfinite(up).all() and np.abs(up).max() > 0
    assert not tensors
    assert set(config["target_modules"]) == {module.split(".")[1] for module in SHAPES}
    assert config["base_config_overrides"]["max_position_embeddings"] >= 16384
    assert (ADAPTER / "adapter_model.safetensors").stat().st_size < 6_000_000


@pytest.fixture(scope="module")
def scripts():
    """The training script as a module; what it imports comes with it."""
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    sys.path.insert(0, str(SCRIPTS))
    try:
        import train_retrieval_adapter
    finally:
        sys.path.remove(str(SCRIPTS))
    return train_retrieval_adapter


@pytest.fixture(scope="module")
def tiny_dir(scripts, tmp_path_factory) -> Path:
    """A random two-layer Llama whose tokens are bytes, in Hugging Face layout."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("tiny")
    backend = Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.save(str(path / "tokenizer.json"))
    cfg = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    (path / "config.json").write_text(json.dumps(cfg))
    generator = torch.Generator().manual_seed(7)
    weights = {
        name: torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 1.0)
        for name, p in scripts.Llama(cfg).named_parameters()
        if ".lora_" not in name
    }
    save_file(weights, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def trained(tiny_dir, tmp_path_factory) -> Path:
    """An adapter of the tiny model after three training steps, made by the command itself."""
    out = tmp_path_factory.mktemp("adapter")
    sizes = "--tokens-per-step 2048 --max-length 1024 --max-positions 2048 --rank 4 --lr 0.1"
    talk = "--self-talk 4 --self-talk-tokens 160 --self-talk-batch 2"
    done = run_script(
        "train_retrieval_adapter.py",
        *("--base", tiny_dir, "--out", out, "--steps", 3, "--workers", 1),
        *sizes.split(),
        *talk.split(),
    )
    assert done.returncode == 0, done.stderr
    return out


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)


def test_training_writes_log_and_adapter(trained):
    log = [json.loads(line) for line in (trained / "train_log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [0, 1, 2]
    assert all(np.isfinite(record["loss"]) for record in log)
    factors = read_safetensors(trained / "adapter_model.safetensors")
    assert len(factors) == 2 * len(SHAPES) * 2
    # B starts at zero: training has reached every layer.
    assert all(np.abs(read()).max() > 0 for name, read in factors.items() if "lora_B" in name)
    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["base_config_overrides"] == {
        "rope_theta": 500_000.0,
        "max_position_embeddings": 2048,
    }


def test_adapted_model_is_that_of_transformers_and_peft(scripts, tiny_dir, trained):
    import torch

    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    ours = scripts.load(tiny_dir, trained)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_dir, dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    plain = scripts.load(tiny_dir)
    theirs = peft.PeftModel.from_pretrained(theirs, trained)
    ids = torch.randint(0, ours.cfg["vocab_size"], (2, 300))
    with torch.no_grad():
        wanted, unmerged = theirs(ids).logits, ours.logits(ours(ids))
        merged = ours.merge_().logits(ours(ids))
        base = plain.logits(plain(ids))
    scale = wanted.abs().max()
    assert (unmerged - wanted).abs().max() < 1e-4 * scale
    assert (merged - wanted).abs().max() < 1e-4 * scale
    assert (base - wanted).abs().max() > 1e-2 * scale


def test_padded_generation_is_greedy_decoding_of_each_prompt(scripts, tiny_dir):
    import torch

    model = scripts.load(tiny_dir)
    prompts = [torch.randint(0, 256, (n,)).tolist() for n in (5, 63, 17, 1)]
    together = scripts.generate(model, prompts, 8)
    for prompt, found in zip(prompts, together):
        ids = list(prompt)
        with torch.no_grad():
            for token in found:
                # Near ties may fall either way in another order of summation.
                logits = model.logits(model(torch.tensor([ids])))[0, -1]
                assert logits[token] >= logits.max() - 1e-3
                ids.append(token)
    stop = together[1][3]
    expected = [row[: row.index(stop)] if stop in row else row for row in together]
    assert scripts.generate(model, prompts, 8, stop) == expected


def test_only_the_answer_bears_loss(scripts, tiny_dir):
    args = argparse.Namespace(
        base=tiny_dir,
        seed=3,
        steps=5,
        max_length=1500,
        tokens_per_step=12_000,
        init=None,
        shares={"kv_retrieval": 3.0},
    )
    batches = scripts.Batches(args)
    tokenizer = scripts.read_tokenizer(tiny_dir)
    for step in range(args.steps):
        ids, mask, names = batches[step]
        again = scripts.Batches(args)[step]
        assert (again[0] == ids).all() and (again[1] == mask).all() and again[2] == names
        for row, marked, name in zip(ids, mask, names):
            start, end = marked.nonzero()[0].item(), marked.nonzero()[-1].item() + 1
            assert marked[start:end].all()
            answer = tokenizer.decode(row[start:end].tolist(), skip_special_tokens=False)
            prompt = tokenizer.decode(row[:start].tolist())
            assert answer.endswith(scripts.END_OF_TURN)
            words = answer[: -len(scripts.END_OF_TURN)]
            assert words.strip() in prompt, name
            assert words.startswith(" ") != prompt.endswith(" ")


def test_divergence_is_that_of_the_definition(scripts, tiny_dir, trained):
    import torch

    base, adapted = scripts.load(tiny_dir), scripts.load(tiny_dir, trained)
    ids = torch.randint(0, 256, (3, 40))
    assert scripts.divergence(base, base, ids).abs() < 1e-6
    with torch.no_grad():
        p, q = (model.logits(model(ids)).double().softmax(-1) for model in (base, adapted))
    wanted = (p * (p / q).log()).sum(-1).mean()
    assert torch.isclose(scripts.divergence(adapted, base, ids).double(), wanted, rtol=1e-3)


def test_evaluation_as_a_process(tiny_dir, trained, tmp_path):
    file = tmp_path / "scores.json"
    done = run_script(
        "eval_adapter.py",
        *("--base", tiny_dir, "--adapter", trained, "--tasks", "passkey,math_find"),
        *("--lengths", "512,700", "--examples", 3, "--workers", 1, "--json", file),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["examples"] == 3 and len(result["asked"]) == 20
    assert {task: list(row) for task, row in result["scores"].items()} == {
        "passkey": ["512", "700"],
        "math_find": ["512", "700"],
    }
    assert "| passkey |" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "named"),
    [
        ("train_retrieval_adapter.py", ["--base", "nowhere", "--out", "o"], "nowhere/config.json"),
        ("eval_adapter.py", ["--base", "nowhere"], "nowhere/config.json"),
        ("eval_adapter.py", ["--base", "TINY", "--tasks", "chess"], "chess"),
        ("eval_adapter.py", ["--base", "TINY", "--tasks", "code_run"], "code_run"),
        ("eval_adapter.py", ["--base", "TINY", "--lengths", "1k"], "1k"),
        ("eval_adapter.py", ["--base", "TINY", "--adapter", "gone"], "gone/adapter_config.json"),
    ],
)
def test_bad_input_is_one_sentence(script, arguments, named, tiny_dir):
    done = run_script(script, *(tiny_dir if word == "TINY" else word for word in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr
