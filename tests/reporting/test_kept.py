"""Positions kept: as bits, as text, and from a real model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evaluation import capture
from reporting import kept, load
from reporting.kept_figure import kept_figure
from tests.reporting.runs import write_data, write_run

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40))


@settings(max_examples=50)
@given(mask=shapes.flatmap(lambda shape: arrays.arrays(bool, shape)), text=st.text())
def test_what_is_saved_is_loaded(tmp_path_factory, mask, text):
    path = tmp_path_factory.mktemp("kept") / "kept.json"
    tokens = [text, "\ud800", *["x"] * mask.shape[-1]][: mask.shape[-1]]
    before = kept.Kept("m", "passkey", 3, 0.2, tokens, [0], {"nacl": mask, "h2o": ~mask})
    before.save(path)
    after = kept.load(path)
    assert after.tokens == tokens and list(after.masks) == ["nacl", "h2o"]
    assert np.array_equal(after.masks["nacl"], mask)
    assert np.array_equal(after.masks["h2o"], ~mask)


def test_a_long_prompt_stays_small():
    masks = {str(i): np.ones((30, 3, 4096), dtype=bool) for i in range(6)}
    whole = kept.Kept("m", "t", 0, 0.2, [" token"] * 4096, [], masks)
    assert len(json.dumps(whole.to_json())) < 500_000


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"model": "other"}, False),
        ({"task": "needle"}, False),
        ({"keep_ratio": 0.5}, False),
        ({"masks": {"h2o": np.ones((1, 1, 1)), "tova": np.ones((1, 1, 1))}}, False),
    ],
)
def test_it_is_of_runs_that_have_all_its_methods(tmp_path, change, same):
    for ratio in (0.2, 0.3):
        write_run(tmp_path / str(ratio), "h2o", [True], model="m", keep_ratio=ratio)
    write_run(tmp_path / "other", "tova", [True], model="m", keep_ratio=0.5)
    of_h2o = {"h2o": np.ones((1, 1, 1))}
    found = kept.Kept("m", "passkey", 0, 0.2, ["x"], [0], of_h2o)
    assert dataclasses.replace(found, **change).is_of(load.read_runs(tmp_path)) is same


def test_the_picture_says_what_its_bars_are():
    masks = {"nacl": np.tile([True, False], (2, 3, 4)), "laprox": np.ones((2, 3, 8), dtype=bool)}
    figure = kept_figure(kept.Kept("m", "passkey", 0, 0.5, ["x"] * 8, [1], masks))
    panels = [ax for panel in figure.subfigs for ax in panel.axes]
    sides = [ax for ax in panels if ax.get_xlabel() == "kept of\nthe layer"]
    assert [[tick.get_text() for tick in ax.get_xticklabels()] for ax in sides] == [
        ["50%"],
        ["100%"],
    ]
    assert sum(ax.get_ylabel() == "heads\nthat keep" for ax in panels) == 2


BYTES = "Ünïcödé → 漢字 🙂🙂 <b>ok</b>\n\nשלום".encode()


def test_characters_cut_into_tokens_come_whole():
    texts = capture.token_texts(lambda ids: bytes(ids).decode(errors="replace"), list(BYTES))
    assert len(texts) == len(BYTES)
    assert "".join(texts) == BYTES.decode()
    assert "🙂" in texts and texts[texts.index("🙂") - 1] == ""


@given(st.binary(min_size=1, max_size=60))
def test_bytes_that_are_no_text_lose_nothing_around_them(junk):
    data = b"start " + junk + b" end of it"
    texts = capture.token_texts(lambda ids: bytes(ids).decode(errors="replace"), list(data))
    assert len(texts) == len(data)
    assert "".join(texts).endswith("end of it")


def test_the_texts_of_the_builtin_tokenizer_join_to_the_prompt(builtin_dir):
    from kvevict.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    text = BYTES.decode() + " The pass key is 68509."
    ids = tokenizer.encode(text)
    assert "".join(capture.token_texts(tokenizer.decode, ids)) == text


def test_the_answer_is_marked_where_it_overlaps():
    tokens = ["The", " key", " is", " 68", "5", "09", ".", " 685", "091"]
    assert kept.answer_tokens(tokens, "68509") == [3, 4, 5]
    assert kept.answer_tokens(tokens, ["nowhere"]) == []


@pytest.mark.parametrize(("framework", "package"), [("paddle", "paddle"), ("pytorch", "torch")])
def test_masks_of_a_real_model_hold_the_budget(builtin_dir, tmp_path, framework, package):
    pytest.importorskip(package)
    write_data(tmp_path, count=2, words=150)
    methods = ["streamingllm", "laprox", "nacl", "kvzip"]
    found = capture.capture(
        "smollm2-135m-instruct", methods, 0.25, "passkey", 1, tmp_path, framework=framework
    )
    n = len(found.tokens)
    assert "".join(found.tokens[i] for i in found.answer).strip() == "10001"
    for mask in found.masks.values():
        assert mask.shape == (30, 3, n)
        assert mask.sum() == 90 * (n // 4)
    window = np.zeros(n, dtype=bool)
    window[:4] = window[n - (n // 4 - 4) :] = True
    assert (found.masks["streamingllm"] == window).all()
    assert (found.masks["nacl"].sum(axis=-1) == n // 4).all()
    assert len(set(found.masks["laprox"].sum(axis=-1).ravel())) > 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 1}', '{"tokens": 5}'])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "kept.json"
    path.write_text(text)
    with pytest.raises(kept.InputError, match=r"kept\.json is not what"):
        kept.load(path)
