"""A run's record names what multiplied by the weights, and the run goes on with that."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import pytest

from kvevict.backends import products

decoder = import_module("kvevict.backends.paddle.decoder")
PADDLE, NUMPY = decoder.PRODUCTS


@pytest.fixture
def numpys(monkeypatch) -> list:
    """The layers that NumPy is asked to multiply by, one after the other."""
    layers = []

    def linear(layer, x):
        layers.append(layer)
        return NUMPY.linear(layer, x)

    monkeypatch.setattr(products, "FEWEST_WEIGHTS", 0)  # tiny models have a choice too
    monkeypatch.setattr(decoder, "PRODUCTS", (PADDLE, replace(NUMPY, linear=linear)))
    return layers


@pytest.fixture
def run(evaluate, numpys, tmp_path):
    """``run(stop, …)``: predict so many examples, the record changed before; the record after."""
    file = tmp_path / "out" / "mine" / "run.json"

    def call(stop: int, **changes):
        if changes:
            record = {**json.loads(file.read_text()), **changes}
            file.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
        numpys.clear()
        call.said = evaluate("--task=passkey", "--model_name=mine", f"--stop_idx={stop}")
        return json.loads(file.read_text())

    return call


def everywhere(product: str) -> dict[str, str]:
    return dict.fromkeys(products.SIZES, product)


def test_the_record_names_what_there_is(run) -> None:
    found = run(1)["products"]
    assert set(found) == set(products.SIZES)
    assert set(found.values()) <= {"paddle", "numpy"}


def test_a_run_goes_on_with_its_products(run, numpys) -> None:
    """Whichever are faster, or were chosen before in this process."""
    run(1)
    for stop, product in enumerate(("numpy", "paddle", "numpy", "paddle"), 2):
        record = run(stop, products=everywhere(product))
        assert record["products"] == everywhere(product) and "earlier_products" not in record
        assert "products are" not in run.said
        assert bool(numpys) == (product == "numpy")


def test_a_run_of_before_there_was_a_choice_goes_on_with_the_frameworks(run, numpys) -> None:
    run(1)
    assert run(2, products=None)["products"] == everywhere("paddle")
    assert not numpys


def test_other_products_are_noted_and_said(run) -> None:
    run(1)
    before = everywhere("a library of another machine")
    record = run(2, products=before)
    assert set(record["products"].values()) <= {"paddle", "numpy"}
    assert record["earlier_products"] == [before]
    assert "and round otherwise than by a library of another machine" in run.said
