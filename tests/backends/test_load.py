"""Model directories in every layout against a float64 reference, and what is refused."""

from __future__ import annotations

import json
import struct
import sys
import tracemalloc
import weakref
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kvevict import backends
from kvevict.errors import InputError
from kvevict.models import read_checkpoint
from kvevict.models.checkpoint import is_linear
from kvevict.models.weights import LazyTensor
from tests.reference_llama import (
    DIMS,
    loaded_logits,
    logits,
    paddle_logits,
    plain_frequencies,
    random_weights,
)

IDS = np.random.default_rng(5).integers(0, DIMS["vocab_size"], 40).tolist()


def write_model(path: Path, weights: dict, builtin_dir: Path, **config) -> Path:
    path.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6, **DIMS, **config}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_bytes((builtin_dir / "tokenizer.json").read_bytes())
    save_file(weights, path / "model.safetensors")
    return path


@pytest.fixture(params=backends.FRAMEWORKS)
def load(request):
    """`backends.load` in each framework that is installed."""
    for package in backends.FRAMEWORKS[request.param]:
        pytest.importorskip(package)
    found = partial(backends.load, framework=request.param)
    found.package = backends.FRAMEWORKS[request.param][0]
    return found


@pytest.fixture
def weights():
    return random_weights(np.random.default_rng(11))


@pytest.fixture
def model_dir(tmp_path, weights, builtin_dir):
    return write_model(tmp_path / "tiny", weights, builtin_dir, eos_token_id=[7, 9])


def test_hugging_face_directory(load, model_dir, weights):
    loaded = load(str(model_dir))
    assert (loaded.name, loaded.max_positions, loaded.eos_ids) == ("tiny", 512, (7, 9))
    assert not loaded.model.training
    expected = logits(weights, IDS, plain_frequencies(10000.0))
    np.testing.assert_allclose(loaded_logits(loaded, IDS), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 3.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_scaling_type": "linear", "rope_scaling_factor": 3.0},
    ],
    ids=["transformers", "transformers 5", "PaddleNLP"],
)
def test_rope_settings_are_honoured_in_every_spelling(load, tmp_path, weights, builtin_dir, keys):
    loaded = load(str(write_model(tmp_path / "m", weights, builtin_dir, **keys)))
    expected = logits(weights, IDS, plain_frequencies(1e6) / 3)
    np.testing.assert_allclose(loaded_logits(loaded, IDS), expected, atol=2e-4, rtol=1e-4)


def test_tied_embeddings(load, tmp_path, builtin_dir):
    weights = random_weights(np.random.default_rng(3), tied=True)
    path = write_model(tmp_path / "m", weights, builtin_dir, tie_word_embeddings=True)
    expected = logits(weights, IDS, plain_frequencies(10000.0))
    actual = loaded_logits(load(str(path)), IDS)
    np.testing.assert_allclose(actual, expected, atol=2e-4, rtol=1e-4)


def test_shards(load, model_dir, weights):
    whole = loaded_logits(load(str(model_dir)), IDS)
    (model_dir / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"part-{i}.safetensors": names[i::3] for i in range(3)}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, model_dir / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_allclose(loaded_logits(load(str(model_dir)), IDS), whole, atol=1e-4)
    (model_dir / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks part-1\.safetensors"):
        load(str(model_dir))


@pytest.mark.skipif(find_spec("paddle") is None, reason="PaddlePaddle is not installed")
def test_paddlenlp_directory(tmp_path, tiny_model, builtin_dir):
    path = tmp_path / "saved"
    tiny_model.save_pretrained(str(path), safe_serialization=True)
    assert any(name.startswith("llama.") for name in load_file(path / "model.safetensors"))
    (path / "tokenizer.json").write_bytes((builtin_dir / "tokenizer.json").read_bytes())
    ids = np.random.default_rng(2).integers(0, 256, 64).tolist()
    actual = loaded_logits(backends.load(str(path)), ids)
    np.testing.assert_allclose(actual, paddle_logits(tiny_model, ids), atol=1e-3, rtol=1e-4)


def write_bfloat16(model_dir: Path, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights cut off to bfloat16, as a model's file; their bits."""
    bits = {n: (array.view(np.uint32) >> 16).astype(np.uint16) for n, array in weights.items()}
    header, body = {}, b""
    for name, array in bits.items():
        offsets = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": offsets}
        body += array.tobytes()
    head = json.dumps(header).encode()
    (model_dir / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + body)
    return bits


def test_bfloat16_file(load, model_dir, weights):
    bits = write_bfloat16(model_dir, weights)
    rounded = {n: (array.astype(np.uint32) << 16).view(np.float32) for n, array in bits.items()}
    expected = logits(rounded, IDS, plain_frequencies(10000.0))
    actual = loaded_logits(load(str(model_dir)), IDS)
    np.testing.assert_allclose(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("framework", backends.FRAMEWORKS)
def test_bfloat16_arrives_bit_for_bit_and_one_tensor_at_a_time(
    framework, tmp_path, weights, builtin_dir
):
    """As on a GPU; Paddle's CPU computes nothing in bfloat16, but it holds it."""
    name, library = backends.FRAMEWORKS[framework]
    ns = pytest.importorskip(name)
    pytest.importorskip(library)
    weights["model.embed_tokens.weight"] = np.random.default_rng(3).normal(size=(60_000, 64))
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"][::-1].copy()
    path = write_model(tmp_path / "wide", weights, builtin_dir, vocab_size=60_000)
    bits, checkpoint = write_bfloat16(path, weights), read_checkpoint(str(path))
    build = backends.backend(framework).build
    cpu = "cpu" if framework == "paddle" else ns.device("cpu")
    build(read_checkpoint(str(path)), "bfloat16", cpu)  # what is imported late is not counted
    tracemalloc.start()
    model = build(checkpoint, "bfloat16", cpu)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Of NumPy: one tensor. With PyTorch on a CPU, its arrays are the model's memory from then on.
    sizes = [array.nbytes for array in bits.values()]
    assert peak < (1.5 * max(sizes) if framework == "paddle" else 1.2 * sum(sizes))
    found = dict(model.named_parameters())
    assert len(found) == len(bits)
    for name, expected in bits.items():
        if framework == "pytorch":
            got = found[name].view(ns.uint16).numpy()
        else:
            got = found[name.replace("model.", "llama.", 1)].numpy()
            got = got.T if is_linear(name) else got
        assert got.dtype == np.uint16
        np.testing.assert_array_equal(got, expected)


def test_dtype(load, model_dir):
    for dtype in {"paddle": ["float32"], "torch": ["bfloat16", "float16"]}[load.package]:
        loaded = load(str(model_dir), dtype=dtype, device="cpu")
        types = {str(parameter.dtype) for parameter in loaded.model.parameters()}
        assert (loaded.dtype, types) == (dtype, {f"{load.package}.{dtype}"})
    with pytest.raises(InputError, match="float32, bfloat16 or float16, not int8"):
        load(str(model_dir), dtype="int8")
    if load.package == "paddle":
        with pytest.raises(InputError, match="computes in float32 on a CPU, not in float16"):
            load(str(model_dir), dtype="float16", device="cpu")


def test_weights_pass_by_one_at_a_time(load, model_dir):
    checkpoint, alive, most = read_checkpoint(str(model_dir)), weakref.WeakSet(), []

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    def counted(read):
        array = read().view(Counted)
        alive.add(array)
        most.append(len(alive))
        return array

    tensors = checkpoint.tensors.items()
    checkpoint.tensors = {n: LazyTensor(t.shape, partial(counted, t)) for n, t in tensors}
    # Of another type than the file's, so that no weight is the array that was read.
    load(checkpoint, dtype="bfloat16" if load.package == "torch" else "float32")
    assert len(most) == len(checkpoint.tensors)
    assert max(most) <= 2  # the next one is read while the last is in hand


def test_devices(load, model_dir):
    assert load(str(model_dir), device="cpu").device == "cpu"
    for device in ("gpux", "tpu", "cuda", "gpu:", "gpu:-1"):
        with pytest.raises(
            InputError, match=f"no device '{device}': devices are cpu, gpu, gpu:<n>"
        ):
            load(str(model_dir), device=device)
    with pytest.raises(InputError, match=r"P\w+ cannot use device 'gpu:99': (it|this)"):
        load(str(model_dir), device="gpu:99")


def test_a_framework_that_is_not_there_is_one_sentence(model_dir, monkeypatch):
    with pytest.raises(InputError, match="framework must be paddle or pytorch, not jax"):
        backends.load(str(model_dir), framework="jax")
    monkeypatch.setitem(backends.FRAMEWORKS, "pytorch", ("torch_of_another_name",))
    with pytest.raises(InputError) as error:
        backends.load(str(model_dir), framework="pytorch")
    assert str(error.value) == (
        f"framework pytorch needs the package torch_of_another_name, which {sys.executable} lacks; "
        "bash scripts/setup.sh --with-torch makes .venv-torch, whose bin/python has it"
    )


def edit_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(path: Path, edit) -> None:
    weights = load_file(path / "model.safetensors")
    edit(weights)
    save_file(weights, path / "model.safetensors")


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def pickled_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


BROKEN = {
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "config not JSON": (lambda p: cut(p / "config.json", 20), "config.json cannot be read as JSON"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "has no weights"),
    "pickled weights": (pickled_only, r"pytorch_model\.bin holds pickled weights"),
    "no tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "has no tokenizer"),
    "bad tokenizer": (lambda p: cut(p / "tokenizer.json", 99), "is not a tokenizer"),
    "architecture": (
        lambda p: edit_config(p, architectures=["MambaForCausalLM"]),
        "this one is MambaForCausalLM",
    ),
    "no size": (lambda p: edit_config(p, hidden_size=None), "hidden_size must be a positive"),
    "odd heads": (lambda p: edit_config(p, num_key_value_heads=3), "do not divide"),
    "head_dim": (
        lambda p: edit_config(p, head_dim=32),
        r"q_proj\.weight has the shape \[64, 64\] where .* \[128, 64\]",
    ),
    "half a header": (lambda p: cut(p / "model.safetensors", 300), "not a whole safetensors"),
    "empty file": (lambda p: cut(p / "model.safetensors", 0), "not a whole safetensors"),
    "half the data": (lambda p: cut(p / "model.safetensors", 90000), "promises more than"),
    "missing tensor": (
        lambda p: edit_weights(p, lambda w: w.pop("model.norm.weight")),
        r"lacks the tensor model\.norm\.weight",
    ),
    "extra tensor": (
        lambda p: edit_weights(p, lambda w: w.update(bias=np.ones(3, np.float32))),
        "has a tensor that Llama does not: bias",
    ),
    "shape": (lambda p: edit_config(p, vocab_size=301), r"\[300, 64\] where .* \[301, 64\]"),
    "integers": (
        lambda p: edit_weights(p, lambda w: w.update(x=np.ones(3, np.int32))),
        "x has the type I32, and only floating point can be read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directory_is_one_sentence(load, model_dir, case):
    damage, words = BROKEN[case]
    damage(model_dir)
    with pytest.raises(InputError, match=words) as caught:
        load(str(model_dir))
    assert str(model_dir) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_model(load, tmp_path):
    with pytest.raises(InputError, match="no model 'smollm3': give a directory"):
        load("smollm3")
    with pytest.raises(InputError, match="no model"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no model"):
        load("some/model.gguf")
    for name, words in {"model.pt": "pickled weights", "notes.txt": "neither a model"}.items():
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=words):
            load(str(tmp_path / name))
