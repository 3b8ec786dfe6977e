"""Codes of a quantised prefix as numbers, in few instructions.

Two neighbouring codes are read as one word of 16 bits, the first in its lower byte: words come to
lie in the tensor cores' registers as numbers of 16 bits do, and an instruction works on two words.
An int8 code becomes the last bits of a number of known size, from which that is subtracted; e4m3
becomes sign, exponent and mantissa of a number that is too small by a power of two.
"""

from __future__ import annotations

from .runtime import tl, triton


def _asm(*lines: str) -> tl.constexpr:
    return tl.constexpr("{ .reg .b32 x, y, z; " + " ".join(lines) + " }")


FIRST, SECOND = "mov.b32 x, $1;", "shr.u32 x, $1, 8;"  # which code is in the lower byte
_LOW = "shl.b32 x, $1, 8;"  # puts the first one into the upper byte
_UP = "mov.b32 x, $1;"

# lop3's 0xea is (a & b) | c, 0x6a is (a & b) ^ c.
_INT8_F16 = (
    "lop3.b32 x, x, 0x00ff00ff, 0x64806480, 0x6a;",  # 1024 + 128 + code
    "mov.b32 y, 0xe480e480;",
    "add.rn.f16x2 $0, x, y;",
)
_INT8_BF16 = (
    "lop3.b32 y, x, 0x007f007f, 0x43004300, 0xea;",  # 128 + the lower seven bits
    "lop3.b32 z, x, 0x00800080, 0x43004300, 0xea;",  # 128, or 256 below zero
    "mov.b32 x, 0xbf80bf80;",
    "fma.rn.bf16x2 $0, z, x, y;",
)
_FP8_F16 = (
    "shr.u32 y, x, 1;",
    "and.b32 y, y, 0x3f803f80;",
    "lop3.b32 y, x, 0x80008000, y, 0xea;",
    "mov.b32 z, 0x5c005c00;",  # 2⁸
    "mul.rn.f16x2 $0, y, z;",
)
_FP8_BF16 = (
    "shr.u32 y, x, 4;",
    "and.b32 y, y, 0x07f007f0;",
    "lop3.b32 y, x, 0x80008000, y, 0xea;",
    "mov.b32 z, 0x7b807b80;",  # 2¹²⁰
    "mov.b32 x, 0x80008000;",  # -0
    "fma.rn.bf16x2 $0, y, z, x;",
)
INT8_F16_FIRST, INT8_F16_SECOND = _asm(FIRST, *_INT8_F16), _asm(SECOND, *_INT8_F16)
INT8_BF16_FIRST, INT8_BF16_SECOND = _asm(FIRST, *_INT8_BF16), _asm(SECOND, *_INT8_BF16)
FP8_F16_FIRST, FP8_F16_SECOND = _asm(_LOW, *_FP8_F16), _asm(_UP, *_FP8_F16)
FP8_BF16_FIRST, FP8_BF16_SECOND = _asm(_LOW, *_FP8_BF16), _asm(_UP, *_FP8_BF16)


@triton.jit
def _both(words, first: tl.constexpr, second: tl.constexpr, like):
    one = tl.inline_asm_elementwise(first, "=r,r", [words], dtype=like.dtype, is_pure=True, pack=2)
    other = tl.inline_asm_elementwise(
        second, "=r,r", [words], dtype=like.dtype, is_pure=True, pack=2
    )
    return one, other


@triton.jit
def numbers(words, KIND: tl.constexpr, like, PTX: tl.constexpr):
    """The first and the second codes of int16 ``words`` in ``like``'s type, bfloat16 or float16.

    Args:
        PTX: whether NVIDIA's instructions are there; the interpreter has none.
    """
    if PTX:
        if KIND == "int8":
            if like.dtype == tl.bfloat16:
                return _both(words, INT8_BF16_FIRST, INT8_BF16_SECOND, like)
            else:
                return _both(words, INT8_F16_FIRST, INT8_F16_SECOND, like)
        else:
            if like.dtype == tl.bfloat16:
                return _both(words, FP8_BF16_FIRST, FP8_BF16_SECOND, like)
            else:
                return _both(words, FP8_F16_FIRST, FP8_F16_SECOND, like)
    else:
        return _number(words.to(tl.int8), KIND, like), _number((words >> 8).to(tl.int8), KIND, like)


@triton.jit
def _number(codes, KIND: tl.constexpr, like):
    if KIND == "fp8":
        codes = codes.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    return codes.to(like.dtype)
