"""Compressed caches in files: the same answers from them, and nothing else taken for one."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from kvevict import Document, InputError, LaProx, SnapKV, backends, decode, prefill, saved
from kvevict.methods import Full, Policy, describe
from kvevict.saved import SavedPrompt
from tests.evaluation import tiny
from tests.interpreters import ROOT, interpreter

FRAMEWORK = "paddle" if find_spec("paddle") else "pytorch"
TEXT = "The river runs to the sea, and the key is 4711 under the stone. " * 12
QUESTIONS = ("Where is the key?", "And the river?", "q" * 300)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return tiny.write_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(model_path) -> backends.LoadedModel:
    return backends.load(model_path, framework=FRAMEWORK, device="cpu")


def ragged(kv_dtype: str | None = None) -> Policy:
    """A policy whose heads differ in length."""
    return LaProx(keep_ratio=0.3, min_eviction_seqlen=0, kv_dtype=kv_dtype)


def read(model: backends.LoadedModel, policy: Policy) -> SavedPrompt:
    ids = model.tokenizer.encode(TEXT)
    (session,) = prefill(model.decoder(), ids, [policy], record=True)
    return SavedPrompt(session, ids, describe(policy), model.identity)


POLICIES = [
    ragged(),
    SnapKV(0.1, min_eviction_seqlen=0),
    Full(),
    ragged("int8"),
    ragged("fp8"),
    ragged("int4"),
    Full(kv_dtype="int2"),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loaded_cache_is_the_one_that_was_saved(model, tmp_path, policy):
    prompt = read(model, policy)
    saved.save(tmp_path / "book.kv", prompt)
    loaded = saved.load(tmp_path / "book.kv", model.decoder(), model.identity)
    assert (loaded.ids, loaded.method) == (prompt.ids, describe(policy))
    assert loaded.session.cache.seen == prompt.session.cache.seen
    for one, other in zip(loaded.session.cache.layers, prompt.session.cache.layers):
        assert one.lengths == other.lengths
        for name in saved.PARTS:
            assert np.array_equal(getattr(one, name).numpy(), getattr(other, name).numpy())
        assert one.kv_dtype == other.kv_dtype == policy.kv_dtype
        for name, codes in one.quantised.tensors.items() if policy.kv_dtype else ():
            assert np.array_equal(codes.numpy(), other.quantised.tensors[name].numpy())
    pairs = [p.session.fork() for p in (loaded, prompt)]
    tokens = [decode(session, 20) for session in pairs]
    assert tokens[0] == tokens[1]
    assert np.array_equal(*(session.logits.numpy() for session in pairs))


def test_questions_on_one_file_find_it_as_it_was(model, tmp_path):
    document = Document.read(model, TEXT, ragged())
    document.save(tmp_path / "book.kv")
    before = (tmp_path / "book.kv").read_bytes()
    loaded = Document.load(tmp_path / "book.kv", model)
    for question in QUESTIONS:
        assert loaded.ask(question, 12) == document.ask(question, 12)
    assert (tmp_path / "book.kv").read_bytes() == before


def test_the_file_is_one_of_safetensors(model, tmp_path):
    saved.save(tmp_path / "book.kv", read(model, ragged()))
    with safe_open(tmp_path / "book.kv", "np") as file:
        assert json.loads(file.metadata()["model"]) == model.identity
        lengths = file.get_tensor("lengths")
        assert file.get_tensor("layers.1.keys").shape == (lengths[1].sum(), tiny.HEAD_DIM)


def test_bfloat16_travels_as_bits(model, tmp_path):
    prompt = read(model, ragged())
    for layer in prompt.session.cache.layers:
        layer.keys, layer.values = (x.to(_bfloat16()) for x in (layer.keys, layer.values))
    saved.save(tmp_path / "book.kv", prompt)
    loaded = saved.load(tmp_path / "book.kv", model.decoder(), model.identity)
    for one, other in zip(loaded.session.cache.layers, prompt.session.cache.layers):
        assert one.keys.dtype == model.decoder().embed([0]).dtype
        assert np.array_equal(one.keys.numpy(), other.keys.to(one.keys.dtype).numpy())


def _bfloat16():
    return __import__({"paddle": "paddle", "pytorch": "torch"}[FRAMEWORK]).bfloat16


ASK = """
import sys
from kvevict import Document, load
model = load(sys.argv[1], framework=sys.argv[2], device="cpu")
print([Document.load(sys.argv[3], model).ask(question, 12) for question in sys.argv[4:]])
"""


@pytest.mark.parametrize("kv_dtype", [None, "int8", "fp8", "int4"])
def test_the_other_framework_goes_on_with_it(model, model_path, tmp_path, kv_dtype):
    other = {"paddle": "pytorch", "pytorch": "paddle"}[FRAMEWORK]
    document = Document.read(model, TEXT, ragged(kv_dtype))
    document.save(tmp_path / "book.kv")
    ran = subprocess.run(
        [interpreter(other), "-c", ASK, model_path, other, tmp_path / "book.kv", *QUESTIONS],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == repr([document.ask(question, 12) for question in QUESTIONS])


def test_another_model_is_refused(model, model_path, tmp_path):
    saved.save(tmp_path / "book.kv", read(model, ragged()))
    identity = {**model.identity, "model.safetensors": "1:0"}
    with pytest.raises(InputError, match="another model"):
        saved.load(tmp_path / "book.kv", model.decoder(), identity)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_a_cut_file_is_refused_wherever_it_ends(model, tmp_path, kv_dtype):
    saved.save(tmp_path / "book.kv", read(model, ragged(kv_dtype)))
    whole = (tmp_path / "book.kv").read_bytes()
    for size in (0, 1, 7, 8, 60, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.kv").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.kv is not a saved cache"):
            saved.load(tmp_path / "cut.kv", model.decoder(), model.identity)


def test_other_files_are_refused(model, model_path, tmp_path):
    (tmp_path / "pickle.kv").write_bytes(pickle.dumps({"keys": [1, 2, 3]}))
    (tmp_path / "text.kv").write_text("12345678{}")
    for path in (tmp_path / "pickle.kv", tmp_path / "text.kv", model_path / "model.safetensors"):
        with pytest.raises(InputError, match="is not a saved cache"):
            saved.load(path, model.decoder(), model.identity)
    for path in (tmp_path, tmp_path / "nothing.kv"):
        with pytest.raises(InputError, match="cannot be read"):
            saved.load(path, model.decoder(), model.identity)


def test_a_newer_version_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "VERSION", saved.VERSION + 1)
    saved.save(tmp_path / "book.kv", read(model, ragged("int8")))
    monkeypatch.undo()
    with pytest.raises(InputError, match="newer kvevict"):
        saved.load(tmp_path / "book.kv", model.decoder(), model.identity)


def test_a_file_says_the_earliest_version_that_reads_it(model, tmp_path):
    for kv_dtype, version in ((None, "1"), ("int8", "2")):
        saved.save(tmp_path / "book.kv", read(model, ragged(kv_dtype)))
        with safe_open(tmp_path / "book.kv", "np") as file:
            assert file.metadata()["version"] == version
            assert file.metadata().get("kv_dtype") == kv_dtype


@pytest.mark.parametrize("part", ["key_scales", "value_scales", "keys"])
def test_codes_and_scales_that_do_not_fit_are_refused(model, tmp_path, part):
    prompt = read(model, ragged("int8"))
    layer = prompt.session.cache.layers[1]
    less = {part: getattr(layer.quantised, part)[1:]}
    layer.quantised = replace(layer.quantised, **less)
    saved.save(tmp_path / "book.kv", prompt)
    with pytest.raises(InputError, match="is not a saved cache"):
        saved.load(tmp_path / "book.kv", model.decoder(), model.identity)


def test_only_what_was_read_and_nothing_after_is_saved(model, tmp_path):
    prompt = read(model, ragged())
    decode(prompt.session, 3)
    with pytest.raises(InputError, match="before anything follows"):
        saved.save(tmp_path / "book.kv", prompt)
    evicting = SnapKV(0.2, min_eviction_seqlen=0, decode_slack=4)
    with pytest.raises(InputError, match="evicted from while decoding"):
        saved.save(tmp_path / "book.kv", read(model, evicting))
    assert not list(tmp_path.iterdir())


SAVE = """
import sys
from kvevict import Document, SnapKV, load
document = Document.read(load(sys.argv[1], framework=sys.argv[2]), "x" * 1500, SnapKV(0.5))
print("ready", flush=True)
while True:
    document.save(sys.argv[3])
"""


def test_an_interrupted_save_leaves_a_whole_file(model, model_path, tmp_path):
    path = tmp_path / "book.kv"
    saved.save(path, read(model, ragged()))
    writer = subprocess.Popen(
        [sys.executable, "-c", SAVE, model_path, FRAMEWORK, path],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
    )
    assert writer.stdout.readline().strip() == b"ready"
    time.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    saved.load(path, model.decoder(), model.identity)
