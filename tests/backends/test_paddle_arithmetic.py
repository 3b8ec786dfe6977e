"""Paddle's fused operations where the CPU has them, and its switch for float32 products.

Fused operations on a claimed GPU: tests/gpu_claimed.
"""

from __future__ import annotations

import paddle
import pytest
from paddle.base import core

from kvevict.backends.paddle import arithmetic, build
from kvevict.models import read_checkpoint
from tests.evaluation import tiny


def test_norm_and_gate_are_their_parts() -> None:
    """By the CPU's own kernels; of RoPE it has none, and that is what is told."""
    found = {}
    for part, inputs in arithmetic._trials("float32", 576, (9, 3), 64):
        found.setdefault(part, set()).add(arithmetic._difference(part, inputs))
    (why,) = found.pop("rotate")
    assert "kernel_factory" in why and "\n" not in why
    assert found == {"norm": {None}, "add_norm": {None}, "gate": {None}}


def test_a_cpu_takes_the_parts_which_are_faster_there() -> None:
    assert arithmetic.choose([paddle.ones([8])], 8, (2, 1), 4) == arithmetic.PLAIN


@pytest.mark.parametrize(
    ("dtype", "device", "allowed"),
    [("float32", "gpu:0", False), ("bfloat16", "gpu:0", True), ("float32", "cpu", True)],
)
def test_a_gpu_multiplies_float32_in_float32(tmp_path, dtype, device, allowed) -> None:
    """Half precision is exact in TF32 as it is; the switch is Paddle's, whatever the build."""
    checkpoint = read_checkpoint(str(tiny.write_llama(tmp_path / "tiny")))
    before = core.get_cublas_switch()
    core.set_cublas_switch(True)
    try:
        build(checkpoint, dtype, device)
        assert core.get_cublas_switch() == allowed
    finally:
        core.set_cublas_switch(before)
