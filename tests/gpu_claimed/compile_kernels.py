"""Compile every kernel, from Paddle bfloat16 tensors, for a GPU that is not there.

    python compile_kernels.py 90

Run by test_paddle_kernels.py. Triton's own compiler and ptxas make the machine code; a stand-in for
the driver says what the GPU is, and looks at the arguments where it would launch.
"""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import paddle

from kvevict import kernels  # imports Triton through Paddle's compatibility layer
from kvevict.cache import LayerCache
from kvevict.kernels import (
    attend,
    codes,
    columns,
    decode,
    layer,
    lending,
    moving,
    products,
    projection,
    selection,
)  # fmt: skip

import triton.backends.nvidia.driver as nvidia  # isort: skip
from triton.runtime import JITFunction, driver  # isort: skip

CAPABILITY = int(sys.argv[1])
SHARED_MEMORY = {80: 166_912, 90: 232_448}  # bytes that one program may have
TOKENS, QUERY_HEADS, KV_HEADS = 5000, 8, 2

compiled: set[str] = set()


class Launcher:
    """Takes the place of the C code that would launch a compiled kernel."""

    def __init__(self, source, metadata) -> None:
        self.name = metadata.name
        signature, tiles = dict(source.signature), getattr(metadata, "tensordesc_meta", None)
        self.launch = nvidia.wrap_handle_tensordesc(self.look, signature, tiles)

    def __call__(self, *args) -> None:
        assert all(type(size) is int and size > 0 for size in args[:3]), (self.name, args[:3])
        of_launch = 0, 0, None, None  # two ways to launch, and memory for them: not asked for
        self.launch(*args[:5], *of_launch, *args[5:])
        compiled.add(self.name)

    def look(self, *args) -> None:
        """Every argument is a constant, a pointer, or a descriptor of bulk copies."""
        for x in args[nvidia._BASE_ARGS_FORMAT_LEN :]:
            assert isinstance(x, (int, float, str, Descriptor)) or x.data_ptr() % 16 == 0, x


class Descriptor:
    """What the GPU's bulk copies demand of an address and its strides (compute capability 9)."""

    def __init__(self, pointer, swizzle, itemsize, kind, block, shape, strides, padding) -> None:
        assert pointer % 16 == 0 and itemsize == 2
        assert all(type(x) is int for x in (*shape, *strides)) and strides[-1] == 1
        assert all(stride * itemsize % 16 == 0 for stride in strides[:-1]), strides


class Driver(nvidia.CudaDriver):
    """An NVIDIA GPU of :data:`CAPABILITY`."""

    def __init__(self) -> None:
        memory = SHARED_MEMORY[CAPABILITY]
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": memory, "warpSize": 32},
            # module, function, registers, spills, threads of a program at most
            load_binary=lambda name, binary, shared, device: (1, 2, 32, 0, 1024),
            fill_tma_descriptor=Descriptor,
        )
        self.launcher_cls = Launcher
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: divmod(CAPABILITY, 10)


def heads(count: int, head_dim: int) -> paddle.Tensor:
    """``[1, count, tokens, head_dim]``, strided as a model's projections are."""
    return paddle.randn([1, TOKENS, count, head_dim]).astype("bfloat16").transpose([0, 2, 1, 3])


def launch_for(head_dim: int) -> None:
    """Every kernel that works on heads of this size."""
    q, k, v = (heads(count, head_dim) for count in (QUERY_HEADS, KV_HEADS, KV_HEADS))
    lse = paddle.randn([1, QUERY_HEADS, TOKENS])
    for rows in (50, TOKENS):
        last = (q[:, :, -rows:], k, lse[:, :, -rows:])
        for reduce in columns.POWER:
            for per_kv_head in (True, False):
                kernels.column_statistic(*last, reduce, per_kv_head)
    group = QUERY_HEADS // KV_HEADS
    w = paddle.randn([KV_HEADS, group, head_dim, 999]).astype("bfloat16")
    kernels.projected_norms(v[0], w)
    kernels.projected_norms(v[0], w, paddle.randn([KV_HEADS, group, TOKENS]))
    held = LayerCache.compact(k[0], v[0])
    held.append(k[0, :, :9], v[0, :, :9])
    tail_lens = paddle.to_tensor([9], dtype="int32")
    kernels.append(k[0, :, 9], v[0, :, 9], held.device_table, tail_lens)
    chunks = kernels.count_chunks(held.lengths)
    places = paddle.zeros([chunks.count + KV_HEADS], dtype="int32")
    for new in (1, 4):
        held_by = (q[0, :, -new:], held.device_table, tail_lens, chunks, 64)
        kernels.decode_attention(*held_by)
        kernels.decode_attention(*held_by, places=places)
    cos, sin = (paddle.randn([TOKENS, head_dim]).astype("bfloat16") for _ in range(2))
    kernels.turn(q, cos, sin)
    newest = (x[:, :, -1:] for x in (q, k, v))
    kernels.turn_and_append(*newest, cos[-1:], sin[-1:], held.device_table, tail_lens)
    for kv_dtype in ("int8", "fp8") if CAPABILITY >= 89 else ("int8",):
        own = LayerCache.compact(k[0], v[0])
        own.quantise(kv_dtype)
        own.append(k[0, :, :9], v[0, :, :9])
        over_codes = (q[0, :, -1:], own.device_table, tail_lens, chunks, 64)
        kernels.decode_attention(*over_codes, kv_dtype=kv_dtype)
    kernels.take(held.keys, held.values, paddle.arange(5, dtype="int32"))


def _helps(name: str, known: dict[str, JITFunction]) -> bool:
    """Whether a kernel calls it."""
    others = (kernel.src for other, kernel in known.items() if other != name)
    return any(re.search(rf"\b{name}\(", source) for source in others)


def main() -> None:
    driver.set_active(Driver())
    for head_dim in (64, 128, 256):
        launch_for(head_dim)
    hidden, weight = (paddle.randn([*s, 4096]).astype("bfloat16") for s in ([1, 9], []))
    kernels.rms_norm(hidden, weight, 1e-5)
    kernels.add_rms_norm(hidden, hidden + 1, weight, 1e-5)
    kernels.gated(hidden, hidden + 1)
    scores = paddle.randn([KV_HEADS, TOKENS])
    mask = kernels.top_k(scores, [60, 7])
    kernels.positions(mask.reshape([-1]), 67)
    kernels.uniform(paddle.to_tensor([1, 2**32 - 1]), TOKENS)
    kernels.neighbours(scores, 7, 31, 4, TOKENS - 32, 1.0, 4.0, True)
    rows, slots = (paddle.arange(n, dtype="int32") for n in (60, 50))
    slots = kernels.reuse(mask[0], rows, slots, rows[40:41])
    kernels.put(paddle.zeros([60, 64]), paddle.zeros([9, 64]), rows, slots, 51)
    for tokens in (1, 3):
        x, norm = hidden[:, :tokens], kernels.Norm(weight, 1e-5)
        kernels.linear(x, paddle.randn([90, 4096]).astype("bfloat16"), weight[:90], norm)
        kernels.gated_linear(x, paddle.randn([180, 4096]).astype("bfloat16"), norm)

    modules = (
        attend, codes, columns, decode, layer, lending, moving, products, projection, selection
    )  # fmt: skip
    known = {name: f for m in modules for name, f in vars(m).items() if isinstance(f, JITFunction)}
    launched = {name for name in known if not _helps(name, known)}
    assert compiled == launched, compiled ^ launched
    print("ok", *sorted(compiled))


if __name__ == "__main__":
    main()
