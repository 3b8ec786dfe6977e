"""The kernels that matter beside their floors, and what launching a token costs.

The last part of scripts/check_gpu.sh. Kernels work on a layer of Llama-3.1-8B's shape. A floor is
the bytes that have to move over the bandwidth that a negation of a gibibyte reaches on this card.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Callable

import numpy as np
from common import DRY, DTYPE, FRAMEWORK, framework, kernels, tensor

from kvevict import backends, ops
from kvevict.cache import LayerCache
from kvevict.engine import Batch, cuda_graph, prefill
from kvevict.engine.prompt_eviction import Eviction
from kvevict.methods import LayerView, build
from tests.evaluation import tiny

QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
TOKENS, ROWS = (2048 if DRY else 131_072), 32
RAGGED = (0.5, 1.5, 1.0, 0.19, 1.81, 1.0, 0.76, 1.24)  # lengths of the heads over their mean
REPEATS = 10


def milliseconds(run: Callable[[], Any]) -> float:
    """Median device time of a call, launched while the GPU is busy, as in a prefill."""
    ns = framework()
    device = ns.cuda if ns.__name__ == "torch" else ns.device
    run()  # compiles
    large, times = drawn(8192, 8192), []
    for _ in range(3):
        device.synchronize()
        for _ in range(25):  # so long that the host gets ahead
            large @ large
        first, last = (device.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(REPEATS):
            run()
        last.record()
        device.synchronize()
        times.append(first.elapsed_time(last) / REPEATS)
    return statistics.median(times)


def drawn(*shape: int, dtype: str = DTYPE) -> Any:
    """Random numbers on the device; few are drawn, for many would take the host a while."""
    few = np.random.default_rng().standard_normal(997, np.float32)
    return tensor(np.resize(few, shape), dtype)


def bandwidth() -> float:
    """Bytes a second."""
    x = drawn(1 << 29)
    return 2 * 2 * (1 << 29) / milliseconds(lambda: -x) * 1e3


def column_sums() -> tuple[Callable, int]:
    q, k = drawn(1, QUERY_HEADS, ROWS, HEAD_DIM), drawn(1, KV_HEADS, TOKENS, HEAD_DIM)
    lse = drawn(1, QUERY_HEADS, ROWS, dtype="float32")
    read = 2 * KV_HEADS * TOKENS * HEAD_DIM
    return lambda: kernels().column_statistic(q, k, lse, "sum", True), read + 4 * KV_HEADS * TOKENS


def selection() -> tuple[Callable, int]:
    """Sinks, the best and a drawn part of a fifth, and their keys and values side by side."""
    scores = drawn(KV_HEADS, TOKENS, dtype="float32").abs()
    keys, values = (drawn(KV_HEADS, TOKENS, HEAD_DIM) for _ in range(2))
    w_o = drawn(KV_HEADS, QUERY_HEADS // KV_HEADS, HEAD_DIM, 64)
    view, policy = LayerView((scores,), keys, values, w_o, [*range(KV_HEADS)]), build("nacl")

    def run() -> None:
        Eviction(policy, TOKENS, 1, KV_HEADS).add_layer(view)

    kept = KV_HEADS * (TOKENS // 5)
    return run, 4 * KV_HEADS * TOKENS + 2 * 2 * 2 * HEAD_DIM * kept


def ragged_decode(kv_dtype: str | None = None) -> tuple[Callable, int]:
    lengths = [int(share * TOKENS / 5) for share in RAGGED]
    held = LayerCache(*(drawn(sum(lengths), HEAD_DIM) for _ in range(2)), lengths)
    if kv_dtype:
        held.quantise(kv_dtype)
    read = held.nbytes
    held.append(*(drawn(KV_HEADS, 1, HEAD_DIM) for _ in range(2)))
    q, tail = drawn(QUERY_HEADS, 1, HEAD_DIM), tensor(np.array([1]), "int32")
    chunks, capacity = kernels().count_chunks(lengths), held.tail_keys.shape[1]
    call = (q, held.device_table, tail, chunks, capacity)
    return lambda: kernels().decode_attention(*call, kv_dtype=kv_dtype), read


PARTS = {
    f"column sums of the last {ROWS} rows": column_sums,
    "NACL's selection and compaction": selection,
    "decoded token over ragged heads": ragged_decode,
    "the same over int8": partial(ragged_decode, "int8"),
}


def launching() -> None:
    """Print what a token of a narrow model takes, which is little but launches."""
    tiny.LAYERS, tiny.HEAD_DIM = (2 if DRY else 32), 64
    with TemporaryDirectory() as folder:
        path = tiny.write_llama(Path(folder) / "narrow", scale=0.1)
        model = backends.load(path, device="cpu" if DRY else "gpu", framework=FRAMEWORK)
    for answer, worth in (
        ("a short answer", 0),
        ("one that is worth a CUDA graph", cuda_graph.WORTH),
    ):
        batch = Batch(prefill(model.decoder(), [7] * 100, [build("full")]), worth)
        for _ in range(5):
            batch.step([7])  # compiles, records and checks
        start = perf_counter()
        for _ in range(REPEATS):
            float(batch.step([7])[0, 0])  # waits for the device, as decoding does
        each = (perf_counter() - start) / REPEATS * 1e3
        if not DRY:
            print(f"a token's launches, {tiny.LAYERS} layers, {answer}: {each:.2f} ms")


def main() -> None:
    """Print a line for each kernel, and two for a token."""
    launching()
    framework()
    if not ops.has_triton():
        print("no Triton, so no kernels to time")
        return
    if DRY:
        for name, part in PARTS.items():
            part()[0]()
            print(f"{name}: ran in Triton's interpreter; a GPU would be timed")
        return
    rate = bandwidth()
    print(f"bandwidth  {rate / 1e12:.2f} TB/s; {TOKENS:,} tokens, {KV_HEADS} kv heads, 20% kept")
    for name, part in PARTS.items():
        run, moved = part()
        time, floor = milliseconds(run), moved / rate * 1e3
        print(f"{name:36s} {time:7.3f} ms, floor {floor:6.3f} ms, {time / floor:5.1f}x")


if __name__ == "__main__":
    main()
