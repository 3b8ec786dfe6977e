"""Rotary frequencies against the published formulas, and the table that models really use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvevict.errors import InputError
from kvevict.models.rope import (
    attention_scale,
    check_rope,
    inverse_frequencies,
    rotary_tables,
)

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


def test_paddles_table_grows_to_the_last_position_and_refuses_more():
    paddle = pytest.importorskip("paddle")
    from kvevict.backends.paddle.build import ExactRotary

    rotary, x = ExactRotary(LLAMA31, 131072), paddle.zeros([1], dtype="float32")
    assert rotary(x, seq_len=280)[0].shape == [1, 280, 1, 128]
    assert rotary.cos_cached.shape == [1, 512, 1, 128]  # what is used, not what could be
    cos, sin = rotary(x, seq_len=131072)
    assert cos.shape == [1, 131072, 1, 128]
    np.testing.assert_allclose(cos[0, ROWS, 0].numpy(), np.cos(ANGLES), atol=1e-7)
    np.testing.assert_allclose(sin[0, ROWS, 0].numpy(), np.sin(ANGLES), atol=1e-7)
    with pytest.raises(InputError, match="131073 tokens is longer"):
        rotary(x, seq_len=131073)


def test_pytorchs_angles_are_as_exact():
    torch = pytest.importorskip("torch")
    from kvevict.backends.torch.build import ExactRotary

    rotary = ExactRotary(LLAMA31, torch.device("cpu")).to(torch.bfloat16)  # as a model may be
    cos, sin = rotary(torch.zeros(1), torch.tensor([ROWS]))
    assert (cos.dtype, cos.shape) == (torch.float32, (1, len(ROWS), 128))
    np.testing.assert_allclose(cos[0].numpy(), np.cos(ANGLES), atol=1e-7)
    np.testing.assert_allclose(sin[0].numpy(), np.sin(ANGLES), atol=1e-7)


def test_other_scalings():
    plain = {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 1e6}
    base = np.array([1e6 ** (-i / 8) for i in range(8)])
    np.testing.assert_allclose(inverse_frequencies(plain), base)
    linear = {**plain, "rope_scaling": {"type": "linear", "factor": 4}}
    np.testing.assert_allclose(inverse_frequencies(linear), base / 4)
    factors = {"rope_type": "factors", "factors": list(range(1, 9))}
    config = {**plain, "rope_scaling": factors}
    np.testing.assert_allclose(inverse_frequencies(config), base / np.arange(1, 9))
    config = {**plain, "rope_scaling": {**factors, "factor": 2.0}}
    np.testing.assert_allclose(inverse_frequencies(config), base / np.arange(1, 9) / 2)
    own = {**plain, "head_dim": 32}
    np.testing.assert_allclose(inverse_frequencies(own), [1e6 ** (-i / 16) for i in range(16)])


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
QWEN25 = {"head_dim": 128, "rope_theta": 1e6, "max_position_embeddings": 32768}


def test_yarn_slows_what_turns_less_than_once_in_the_original_context():
    ratio = inverse_frequencies({**QWEN25, "rope_scaling": YARN}) * 1e6 ** (np.arange(64) / 64)
    # 32 turns in 32,768 tokens are those of pair 23.6, one turn is that of pair 39.7.
    expected = [1.0] * 23 + [1 - 0.75 * i / 17 for i in range(18)] + [0.25] * 23
    np.testing.assert_allclose(ratio, expected, rtol=1e-12)
    scale = attention_scale({**QWEN25, "rope_scaling": YARN})
    assert scale == pytest.approx(0.1 * math.log(4) + 1)
    cos, sin = rotary_tables({**QWEN25, "rope_scaling": YARN}, 9)
    np.testing.assert_allclose(cos**2 + sin**2, np.full((9, 128), scale**2), rtol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"beta_fast": 20, "beta_slow": 2},
        {"truncate": False},
        {"attention_factor": 1.3},
        {"mscale": 0.7, "mscale_all_dim": 1.2},
        {"factor": 0.5},
    ],
)
def test_yarn_is_that_of_transformers(more):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {**YARN, **more}
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 128}
    theirs = transformers.Qwen3Config(**sizes, rope_parameters={**scaling, "rope_theta": 1e5})
    frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](theirs, None)
    ours = {**sizes, "rope_theta": 1e5, "rope_scaling": scaling}
    np.testing.assert_allclose(inverse_frequencies(ours), frequencies.numpy(), rtol=1e-5)
    assert attention_scale(ours) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "dynamic", "factor": 4}, "'dynamic' is not supported"),
        ({"type": "longrope", "short_factor": [1.0]}, "'longrope' is not supported"),
        ({"rope_type": "llama3", "factor": 8}, "not complete"),
        ({"rope_type": "yarn", "factor": 4}, "not complete"),
        ({"rope_type": "factors", "factors": [1.0, 2.0, 3.0]}, "not complete"),
        ({"rope_type": "linear", "factor": 0}, "not (complete|give finite)"),
        ({"rope_type": "linear", "factor": -2.0}, "finite positive"),
        ({**YARN, "mrope_section": [16, 24]}, r"mrope_section=\[16, 24\] in rope_scaling"),
        ({"factor": 4.0}, "factor=4.0 in rope_scaling of type 'default'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_bad_scaling_is_one_sentence(scaling, words):
    with pytest.raises(InputError, match=words):
        check_rope({**LLAMA31, "rope_scaling": scaling})
