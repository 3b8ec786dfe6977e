"""PaddleNLP's Llama taken apart."""

from __future__ import annotations

import pytest

from kvevict import InputError
from kvevict.backends.paddle.decoder import PaddleDecoder


@pytest.mark.parametrize(
    ("setting", "value", "plain"),
    [
        ("fuse_attention_qkv", True, "False"),
        ("alibi", True, "False"),
        ("hidden_act", "relu", "silu"),
    ],
)
def test_settings_that_change_the_arithmetic_are_refused(
    tiny_model, monkeypatch: pytest.MonkeyPatch, setting: str, value: object, plain: str
) -> None:
    monkeypatch.setattr(tiny_model.config, setting, value, raising=False)
    with pytest.raises(InputError, match=f"load the model with {setting}='?{plain}"):
        PaddleDecoder(tiny_model)
