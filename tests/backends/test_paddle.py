"""PaddleNLP's Llama taken apart."""

from __future__ import annotations

import pytest

from kvevict import InputError
from kvevict.backends.paddle.decoder import PaddleDecoder


def test_fused_weights_are_refused(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model.config, "fuse_attention_qkv", True)
    with pytest.raises(InputError, match="without fuse_attention_qkv"):
        PaddleDecoder(tiny_model)
