"""Rotary frequencies against the published formulas, and the table that models really use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvevict.errors import InputError
from kvevict.models.rope import inverse_frequencies

LLAMA31 = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def llama31_frequency(i: int) -> float:
    """Frequency i of Llama 3.1, case by case as Meta published it."""
    frequency = 500000.0 ** (-2 * i / 128)
    wavelength = 2 * math.pi / frequency
    if wavelength < 8192 / 4:
        return frequency
    if wavelength > 8192 / 1:
        return frequency / 8
    smooth = (8192 / wavelength - 1) / (4 - 1)
    return (1 - smooth) * frequency / 8 + smooth * frequency


def test_llama31_frequencies_follow_the_formula():
    expected = [llama31_frequency(i) for i in range(64)]
    np.testing.assert_allclose(inverse_frequencies(LLAMA31), expected, rtol=1e-13)
    # All three cases occur, so that none of them goes untested.
    ratio = inverse_frequencies(LLAMA31) * 500000.0 ** (np.arange(64) / 64)
    assert {"kept", "ramp", "slowed"} == {
        "kept" if r > 0.9999 else "slowed" if r < 0.12501 else "ramp" for r in ratio
    }


ROWS = [0, 1, 4097, 65536, 131071]
ANGLES = np.array([[p * llama31_frequency(i % 64) for i in range(128)] for p in ROWS])


def test_table_is_exact_up_to_the_last_position_and_refuses_more():
    paddle = pytest.importorskip("paddle")
    from kvevict.backends.paddle.build import RotaryTable

    table = RotaryTable(LLAMA31)
    cos, sin = table(paddle.zeros([1], dtype="float32"), seq_len=131072)
    assert cos.shape == [1, 131072, 1, 128]
    np.testing.assert_allclose(cos[0, ROWS, 0].numpy(), np.cos(ANGLES), atol=1e-7)
    np.testing.assert_allclose(sin[0, ROWS, 0].numpy(), np.sin(ANGLES), atol=1e-7)
    with pytest.raises(InputError, match="131073 tokens is longer"):
        table(cos, seq_len=131073)


def test_the_same_table_on_pytorch():
    torch = pytest.importorskip("torch")
    from kvevict.backends.torch.build import RotaryTable

    cos, sin = RotaryTable(LLAMA31, torch.device("cpu"))(torch.zeros(1), torch.tensor([ROWS]))
    assert cos.shape == (1, len(ROWS), 128)
    np.testing.assert_allclose(cos[0].numpy(), np.cos(ANGLES), atol=1e-7)
    np.testing.assert_allclose(sin[0].numpy(), np.sin(ANGLES), atol=1e-7)


def test_other_scalings():
    plain = {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 1e6}
    base = np.array([1e6 ** (-i / 8) for i in range(8)])
    np.testing.assert_allclose(inverse_frequencies(plain), base)
    linear = {**plain, "rope_scaling": {"type": "linear", "factor": 4}}
    np.testing.assert_allclose(inverse_frequencies(linear), base / 4)
    factors = {**plain, "rope_scaling": {"rope_type": "factors", "factors": list(range(1, 9))}}
    np.testing.assert_allclose(inverse_frequencies(factors), base / np.arange(1, 9))


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "yarn", "factor": 4}, "'yarn' is not supported"),
        ({"rope_type": "llama3", "factor": 8}, "not complete"),
        ({"rope_type": "factors", "factors": [1.0, 2.0, 3.0]}, "not complete"),
    ],
)
def test_bad_scaling_is_one_sentence(scaling, words):
    with pytest.raises(InputError, match=words):
        inverse_frequencies({**LLAMA31, "rope_scaling": scaling})
