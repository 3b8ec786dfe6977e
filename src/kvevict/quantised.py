"""Entries of a cache in few bits, along KIVI's axes (Liu et al., arXiv 2402.02750).

A few channels of the keys are many times larger than the others, for all tokens alike, so each
channel has a scale of its own, shared by ``GROUP`` consecutive kept entries of a head; the last
group of a head may be shorter. Values have no such channels: each entry of a head has one scale.

``int8`` and ``fp8`` (e4m3) are symmetric, a number is code · scale. ``int4`` and ``int2`` have too
few codes to spend half of them on a sign that may not occur: as in KIVI, a number is
low + code · scale, the codes going from the smallest number to the largest, and several share a
byte. Scales and lows are float16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from .errors import InputError
from .tensors import Tensor, lookup, namespace

KV_DTYPES = ("int8", "fp8", "int4", "int2")
BITS = {"int8": 8, "fp8": 8, "int4": 4, "int2": 2}
LARGEST = {"int8": 127.0, "fp8": 448.0}  # codes of the largest magnitude, where they are symmetric
GROUP = 64  # kept entries of a head whose keys share their channels' scales
FLOAT16_MAX = 65504.0
AT_A_TIME = 2**17  # entries, or those of one head, that are quantised at a time, in float32


@dataclass(frozen=True)
class Quantised:
    """Keys and values of one layer's prefix, head after head.

    Attributes:
        kv_dtype: what the codes are, of ``KV_DTYPES``.
        keys, values: codes, ``[entries, head_dim · bits / 8]``: int8, otherwise bytes as uint8.
        key_scales: float16 ``[groups, head_dim]``, each head beginning with a new group.
        value_scales: float16 ``[entries]``.
        key_lows, value_lows: likewise, the smallest numbers; None where codes are symmetric.
    """

    kv_dtype: str
    keys: Tensor
    values: Tensor
    key_scales: Tensor
    value_scales: Tensor
    key_lows: Tensor | None = None
    value_lows: Tensor | None = None

    @classmethod
    def of(cls, kv_dtype: str, runs: Iterable[tuple[Tensor, Tensor]]) -> Quantised:
        """Quantise keys and values.

        Args:
            kv_dtype: of ``KV_DTYPES``.
            runs: of heads of equal length, two ``[heads, length, head_dim]`` each.

        Raises:
            InputError: codes of this head_dim do not fill whole bytes.
        """
        parts, runs = [], list(runs)
        for k, v in [run for run in runs if run[0].shape[1]] or runs[:1]:
            some = max(1, AT_A_TIME // max(1, k.shape[1]))
            spans = [slice(first, first + some) for first in range(0, k.shape[0], some)]
            parts += [_quantised(kv_dtype, k[span], v[span]) for span in spans]
        # A copy also of one part, which may be a view of more than is kept.
        return cls(kv_dtype, *(namespace(own[0]).cat(list(own)) for own in zip(*parts)))

    def numbers(
        self, row: int, group: int, heads: int, length: int, dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of heads of equal length, ``[heads, length, head_dim]`` in ``dtype``.

        Args:
            row, group: the first head's first entry and first group.
        """
        rows = slice(row, row + heads * length)
        groups = slice(group, group + heads * count_groups(length))

        def of_key(scales: Tensor | None) -> Tensor | None:
            """Each entry's own, ``[heads, length, head_dim]``."""
            if scales is None:
                return None
            own = scales[groups].float().reshape(heads, -1, 1, scales.shape[-1])
            return own.expand(-1, -1, GROUP, -1).flatten(1, 2)[:, :length]

        def of_value(scales: Tensor | None) -> Tensor | None:
            return None if scales is None else scales[rows].reshape(heads, length, 1).float()

        return tuple(
            _decoded(codes[rows].reshape(heads, length, -1), self.kv_dtype, *scales).to(dtype)
            for codes, scales in (
                (self.keys, (of_key(self.key_scales), of_key(self.key_lows))),
                (self.values, (of_value(self.value_scales), of_value(self.value_lows))),
            )
        )

    def check(self, lengths: list[int]) -> None:
        """Hold the shapes to one another and to what each head keeps.

        Raises:
            ValueError: they do not fit.
        """
        rows, groups = sum(lengths), sum(map(count_groups, lengths))
        head_dim = self.key_scales.shape[-1]
        wide = [rows, head_dim * BITS[self.kv_dtype] // 8]
        shapes = {"keys": wide, "values": wide}
        for name in ("scales",) if self.kv_dtype in LARGEST else ("scales", "lows"):
            shapes |= {f"key_{name}": [groups, head_dim], f"value_{name}": [rows]}
        if {name: list(x.shape) for name, x in self.tensors.items()} != shapes:
            raise ValueError("codes and scales do not fit the lengths")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is held, by name."""
        held = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        return {name: tensor for name, tensor in held.items() if tensor is not None}


def count_groups(length: int) -> int:
    """Groups of a head of so many entries."""
    return -(-length // GROUP)


def entry_bytes(kv_dtype: str | None, head_dim: int, element_size: int) -> float:
    """Bytes of an entry's key and value in groups that are full; ``element_size`` of a number."""
    if kv_dtype is None:
        return 2 * head_dim * element_size
    scale = 2 if kv_dtype in LARGEST else 4  # bytes, the low ones included
    return head_dim * BITS[kv_dtype] / 4 + scale * (head_dim / GROUP + 1)


def _quantised(kv_dtype: str, k: Tensor, v: Tensor) -> list[Tensor]:
    """The tensors of :class:`Quantised`, of heads of equal length."""
    if k.shape[-1] * BITS[kv_dtype] % 8:
        raise InputError(f"{kv_dtype} cannot pack a head_dim of {k.shape[-1]} into bytes")
    keys, values = _encoded(_in_groups(k), kv_dtype, axis=2), _encoded(v, kv_dtype, axis=2)
    codes = keys[0].flatten(1, 2)[:, : k.shape[1]]  # without what filled the last group
    rows = [codes.flatten(0, 1), values[0].flatten(0, 1)]
    for of_keys, of_values in zip(keys[1:], values[1:]):
        rows += [of_keys.flatten(0, 1), of_values.flatten()]
    return rows


def _in_groups(x: Tensor) -> Tensor:
    """``[heads, length, d]`` as ``[heads, groups, GROUP, d]``, filled up with the last entry."""
    heads, length, head_dim = x.shape
    missing = count_groups(length) * GROUP - length
    if missing:
        last = x[:, -1:].expand(heads, missing, head_dim)  # changes no smallest and no largest
        x = namespace(x).cat([x, last], dim=1)
    return x.reshape(heads, count_groups(length), GROUP, head_dim)


def _encoded(x: Tensor, kv_dtype: str, axis: int) -> tuple[Tensor, ...]:
    """Codes ``[..., bytes]``; without ``axis``, scales and the lows of what is not symmetric."""
    ns, x = namespace(x), x.float()
    float16 = ns.float16
    if kv_dtype in LARGEST:
        largest = LARGEST[kv_dtype]
        scales = _float16(x.abs().amax(axis, keepdim=True) / largest)
        y = (x / _divisor(scales)).clamp(-largest, largest)
        codes = _round(y).to(ns.int8) if kv_dtype == "int8" else _e4m3(y)
        return codes, scales.squeeze(axis)
    low, levels = _float16(x.amin(axis, keepdim=True)), 2 ** BITS[kv_dtype] - 1
    scales = _float16((x.amax(axis, keepdim=True) - low.float()).clamp(min=0) / levels)
    codes = _round((x - low.float()) / _divisor(scales)).clamp(0, levels)
    return (
        _packed(codes.to(ns.int32), kv_dtype),
        scales.squeeze(axis),
        low.squeeze(axis).to(float16),
    )


def _decoded(codes: Tensor, kv_dtype: str, scales: Tensor, lows: Tensor | None) -> Tensor:
    """Float32 ``[..., head_dim]``."""
    ns = namespace(codes)
    if kv_dtype == "int8":
        return codes.float() * scales
    numbers = lookup(_numbers(kv_dtype, codes), codes.flatten().to(ns.int32))
    numbers = numbers.reshape([*codes.shape[:-1], -1]) * scales
    return numbers if lows is None else numbers + lows


def _float16(x: Tensor) -> Tensor:
    return x.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(namespace(x).float16)


def _divisor(scales: Tensor) -> Tensor:
    """Float32; 1 where a scale is 0, for numbers that are all the same or too small."""
    scales = scales.float()
    return scales.masked_fill(scales == 0, 1.0)


def _round(x: Tensor) -> Tensor:
    """To the nearest whole number, ties to even in both frameworks; for ``|x| < 2²²``."""
    return (x + 1.5 * 2.0**23) - 1.5 * 2.0**23


def _packed(codes: Tensor, kv_dtype: str) -> Tensor:
    """Codes ``[..., head_dim]`` as bytes, the first channels in the lowest bits."""
    bits = BITS[kv_dtype]
    parts = codes.reshape([*codes.shape[:-1], codes.shape[-1] * bits // 8, 8 // bits])
    parts = [parts[..., i] * 2 ** (bits * i) for i in range(8 // bits)]
    return sum(parts[1:], parts[0]).to(namespace(codes).uint8)


def _numbers(kv_dtype: str, like: Tensor) -> Tensor:
    """What the codes in each byte stand for, float32 ``[256, codes]``: to be multiplied."""
    ns = namespace(like)
    if kv_dtype == "fp8":
        return _e4m3_numbers(like).unsqueeze(-1)
    byte, bits = ns.arange(256, dtype=ns.int32, device=like.device), BITS[kv_dtype]
    parts = [byte // 2 ** (bits * i) % 2**bits for i in range(8 // bits)]
    return ns.stack(parts, dim=-1).float()


def _e4m3(x: Tensor) -> Tensor:
    """The bytes of float32 numbers up to 448 as e4m3, ties to even: Paddle's CPU has no such type.

    The rounded upper bits of a float32 are e4m3's, but for the exponent's bias (127 less 7); below
    2⁻⁶, its smallest normal number, e4m3 counts in steps of 2⁻⁹.
    """
    ns, size = namespace(x), x.abs()
    bits = size.contiguous().view(ns.int32)
    normal = (bits + 0x7FFFF + bits // 2**20 % 2) // 2**20 - (120 << 3)
    code = ns.where(size < 2.0**-6, _round(size * 2.0**9).to(ns.int32), normal)
    return (code + (x < 0).to(ns.int32) * 128).to(ns.uint8)


def _e4m3_numbers(like: Tensor) -> Tensor:
    """What bytes stand for, float32 ``[256]``; 127 and 255, which are NaN, are never written."""
    ns = namespace(like)
    byte = ns.arange(256, dtype=ns.int32, device=like.device)
    code = byte % 128
    normal = (code * 2**20 + (120 << 23)).view(ns.float32)
    numbers = ns.where(code < 8, code.float() * 2.0**-9, normal)
    return ns.where(byte < 128, numbers, -numbers)
