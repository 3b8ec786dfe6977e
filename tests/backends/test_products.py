"""What multiplies a model's activations by its weights on a CPU: every product, and the choice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest

from kvevict import cores
from kvevict.backends import numpy_product, products
from kvevict.backends.products import Product, Products

ROUNDING = {"float32": 1e-5, "bfloat16": 3e-2}  # of the largest number
TOKENS = (1, 3, 700, 1100)  # fewer and more than NumPy's threads take at a time


class Layers:
    """Random linear layers of a framework, such as a model's MLP has them.

    Attributes:
        gate_proj, up_proj, down_proj: with biases, and each with another width.
    """

    def __init__(self, framework: str, seed: int, dtype: str = "float32") -> None:
        self.framework, self.dtype = import_module(framework), dtype
        self.rng = np.random.default_rng(seed)
        self.arrays = {}
        for name, (n, m) in {"gate": (48, 72), "up": (48, 72), "down": (72, 48)}.items():
            weight, bias = self.rng.normal(size=(n, m)) / n**0.5, self.rng.normal(size=m)
            layer = self.framework.nn.Linear(n, m)
            of_layer = weight if framework == "paddle" else weight.T
            for parameter, own in ((layer.weight, of_layer), (layer.bias, bias)):
                self._set(parameter, own)
            if framework == "torch":
                layer = layer.to(self.type)
            setattr(self, f"{name}_proj", layer)
            self.arrays[name] = self.double(layer.weight.detach()), self.double(layer.bias.detach())

    def __call__(self, x):
        """Of PyTorch's own blocks."""
        return self.down_proj(
            self.framework.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        )

    @property
    def type(self):
        return getattr(self.framework, self.dtype)

    def _set(self, parameter, value: np.ndarray) -> None:
        if self.framework.__name__ == "paddle":
            parameter.set_value(value.astype("float32"))
        else:
            parameter.data.copy_(self.framework.from_numpy(value))

    def input(self, *shape: int):
        """Random numbers of either sign, some far from nought."""
        x = self.rng.standard_cauchy(shape).clip(-90, 90).astype("float32")
        if self.framework.__name__ == "paddle":
            return self.framework.to_tensor(x)
        return self.framework.from_numpy(x).to(self.type)

    @staticmethod
    def double(x) -> np.ndarray:
        return x.astype("float64").numpy() if hasattr(x, "astype") else x.double().numpy()

    def affine(self, name: str, x: np.ndarray) -> np.ndarray:
        """``x Wᵀ + b`` in float64."""
        weight, bias = self.arrays[name]
        return x @ (weight if self.framework.__name__ == "paddle" else weight.T) + bias

    def mlp(self, x: np.ndarray) -> np.ndarray:
        """``down(silu(gate(x)) · up(x))`` in float64."""
        gate = self.affine("gate", x)
        return self.affine("down", gate / (1 + np.exp(-gate)) * self.affine("up", x))


def assert_close(got, expected: np.ndarray, dtype: str) -> None:
    assert tuple(got.shape) == expected.shape
    assert dtype in str(got.dtype)
    error = np.abs(Layers.double(got.detach()) - expected).max()
    assert error <= ROUNDING[dtype] * np.abs(expected).max()


CASES = [
    ("paddle", "paddle", "float32"),
    ("paddle", "numpy", "float32"),
    ("torch", "pytorch", "float32"),
    ("torch", "numpy", "float32"),
    ("torch", "onednn", "float32"),
    ("torch", "pytorch", "bfloat16"),
    ("torch", "onednn", "bfloat16"),
]


@pytest.mark.parametrize(("framework", "name", "dtype"), CASES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_numbers_are_those_of_float64(framework, name, dtype, tokens) -> None:
    pytest.importorskip(framework)
    (product,) = (p for p in of_framework(framework) if p.name == name)
    layers = Layers(framework, tokens, dtype)
    for shape in ((1, tokens, 48), (2, tokens, 48)):
        x = layers.input(*shape)
        try:
            linear, mlp = product.linear(layers.gate_proj, x), product.mlp(layers, x)
        except RuntimeError as error:  # not every processor has it: then the trial leaves it out
            assert (name, dtype) == ("onednn", "bfloat16") and "primitive" in str(error)
            return
        assert_close(linear, layers.affine("gate", layers.double(x)), dtype)
        assert_close(mlp, layers.mlp(layers.double(x)), dtype)


def of_framework(framework: str) -> tuple[Product, ...]:
    return import_module(f"kvevict.backends.{framework}.products").PRODUCTS


def test_silu_of_any_size() -> None:
    gate = np.array([[0, -0.0, 1, -1, 30, -30, 88, -88, 3e3, -3e3, 1e30, -1e30]], np.float32)
    up = np.linspace(-2, 3, 12, dtype=np.float32)[None]
    with np.errstate(over="ignore"):
        expected = gate.astype(float) * up / (1 + np.exp(-gate.astype(float)))
        numpy_product.silu_times(gate, up.copy())
    np.testing.assert_allclose(gate, expected, rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("most", [7, 1000])
def test_however_rows_are_dealt_out(monkeypatch, threads, most) -> None:
    layers = Layers(pytest.importorskip("paddle").__name__, threads)
    monkeypatch.setattr(numpy_product, "ROWS", most)
    with ThreadPoolExecutor(threads) as pool:
        monkeypatch.setattr(numpy_product, "cpu_threads", lambda: threads)
        monkeypatch.setattr(cores, "_threads", lambda process: (pool, Lock()))
        for tokens in (1, 4, 6, 64, 71):
            x = layers.input(1, tokens, 48)
            assert_close(numpy_product.mlp(layers, x), layers.mlp(layers.double(x)), "float32")
        assert numpy_product.mlp(layers, layers.input(1, 0, 48)).shape == [1, 0, 48]


# The choice. Time is counted, not measured: each product says what a pass takes.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def taking(self, seconds: float, product: Product) -> Product:
        """The product, whose MLP takes so long."""

        def mlp(block, x):
            self.now += seconds
            return product.mlp(block, x)

        return replace(product, mlp=mlp)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(products, "time", clock)
    monkeypatch.setattr(products, "FEWEST_WEIGHTS", 0)
    monkeypatch.setattr(products, "PROMPT_OPERATIONS", 1e7)
    return clock


@pytest.fixture
def choice(tiny_decoder, clock):
    """``choice(own, numpy, …)``: the products of a model that has these to choose from."""
    of_model = tiny_decoder._products

    def choose(*there: Product, wanted: str | None = None) -> Products:
        named = dict.fromkeys(products.SIZES, wanted)
        return Products(there, of_model._block, of_model._dtype, of_model._tensor, named)

    choose.own = of_model._own
    choose.numpy = Product("numpy", numpy_product.linear, numpy_product.mlp, ("float32",))
    return choose


def of_all_sizes(product: Product) -> dict[str, Product]:
    return dict.fromkeys(products.SIZES, product)


def test_the_fastest_is_chosen_by_a_clear_margin(choice, clock) -> None:
    own, clear = clock.taking(0.10, choice.own), clock.taking(0.08, choice.numpy)
    assert choice(own, clear).chosen == of_all_sizes(clear)
    assert choice(own, clock.taking(0.095, choice.numpy)).chosen == of_all_sizes(own)
    assert choice(own, clock.taking(0.12, choice.numpy)).chosen == of_all_sizes(own)
    other = replace(clock.taking(0.05, choice.numpy), name="other")
    assert choice(own, clear, other).chosen == of_all_sizes(other)


@pytest.mark.parametrize("size", products.SIZES)
def test_each_size_of_input_has_its_own(choice, clock, size) -> None:
    """What is slow at one only is taken at the others, and inputs find what was chosen."""
    least = products.SIZES[size]
    above = min((n for n in products.SIZES.values() if n > least), default=2**30)

    def mlp(block, x):
        clock.now += 5 if least <= x.shape[1] < above else 0
        return choice.numpy.mlp(block, x)

    own, partly = clock.taking(1, choice.own), replace(choice.numpy, mlp=mlp)
    found = choice(own, partly)
    assert found.chosen == {**of_all_sizes(partly), size: own}
    for shape in ((1, 0), (1, 1), (2, 1), (1, 2), (4, 31), (1, 127), (1, 128), (2, 64), (1, 5000)):
        product = found(SimpleNamespace(shape=(*shape, 128)))
        tokens = max(shape[0] * shape[1], 1)
        assert product is (own if least <= tokens < above else partly)


def without_the_last_input(layer, x):
    x = x.clone()
    x[..., -1] = 0
    return numpy_product.linear(layer, x)


def one_number_wrong(layer, x):
    found = numpy_product.linear(layer, x)
    found[0, -1, -1] += 0.01 * abs(found).max()
    return found


def absent(layer, x):
    raise NotImplementedError("mkldnn is not in this build")


WRONG = {
    "an input left out": without_the_last_input,
    "one number": one_number_wrong,
    "not a number": lambda layer, x: numpy_product.linear(layer, x) * float("nan"),
    "a shape": lambda layer, x: numpy_product.linear(layer, x)[..., 1:],
    "absent": absent,
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_numbers_are_not_taken_however_fast(choice, clock, fault) -> None:
    own = clock.taking(0.10, choice.own)
    wrong = replace(choice.numpy, linear=WRONG[fault])
    assert choice(own, wrong).chosen == of_all_sizes(own)
    assert choice(own, wrong, wanted="numpy").chosen == of_all_sizes(own)
    right = replace(clock.taking(0.05, choice.numpy), name="right")
    assert choice(own, wrong, right).chosen == of_all_sizes(right)


def test_the_one_that_is_wanted(choice, clock) -> None:
    """As far as there is one, whatever it takes."""
    own, slow = clock.taking(0.1, choice.own), clock.taking(0.5, choice.numpy)
    fast = replace(clock.taking(0.0, choice.numpy), name="fast")
    assert choice(own, slow, wanted="numpy").chosen == of_all_sizes(slow)
    assert choice(own, fast, wanted=own.name).chosen == of_all_sizes(own)
    assert choice(own, slow, fast, wanted="no such library").chosen == of_all_sizes(fast)


def test_types_and_sizes_that_are_left_to_the_framework(choice, clock, monkeypatch) -> None:
    own, half = clock.taking(1, choice.own), replace(choice.numpy, dtypes=("float16",))
    assert choice(own, half).chosen == of_all_sizes(own)
    assert choice(own, choice.numpy).chosen == of_all_sizes(choice.numpy)
    monkeypatch.setattr(products, "FEWEST_WEIGHTS", 1 << 20)
    assert choice(own, choice.numpy).chosen == of_all_sizes(own)
