"""Decoding with Llama-3.1-8B's shape at 131,072 tokens: the loop, its CUDA graph, transformers.

    python scripts/bench/bench_decode.py --out docs/data/decode_h200.json

Weights and cache entries are random and no prompt is run: a step's work depends on how many
entries each head holds, not on what they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench_gpu import GIB, random_llama
from transformers import Cache, DynamicCache, LlamaForCausalLM, StaticCache

from kvevict import build
from kvevict.backends.torch.decoder import TorchDecoder
from kvevict.cache import KVCache, LayerCache
from kvevict.engine import Batch, cuda_graph, prefill
from kvevict.engine.session import Session

BANDWIDTH = 4.26e12  # bytes a second, of a kernel that reads and writes 8.6 GB on an H200


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, default=32, help="fewer for a trial")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = random_llama(args.layers)
    weights = sum(p.nbytes for p in model.parameters()) - model.model.embed_tokens.weight.nbytes
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {args.layers} layers\n")
    print("| | sequences | cache GiB | floor ms | graph ms | loop ms | recording ms |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for row in measured(model, args.tokens, args.steps):
        row["floor_ms"] = round((weights + row["cache_bytes"]) / BANDWIDTH * 1e3, 2)
        rows.append(row)
        cells = [row.get(k, "") for k in ("floor_ms", "graph_ms", "loop_ms", "recording_ms")]
        held = round(row["cache_bytes"] / GIB, 2)
        print("|", *(f"{cell} |" for cell in (row["label"], row["sequences"], held, *cells)))
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1))


def measured(model: LlamaForCausalLM, tokens: int, steps: int) -> Iterator[dict]:
    """A row for each setting."""
    for label, run in (("full cache", concatenating), ("static cache, compiled", compiled)):
        yield {"label": f"transformers, {label}", "sequences": 1, **run(model, tokens, steps)}
    decoder = TorchDecoder(model)
    for label, sequences, lengths in settings(tokens, decoder.layers):
        batch = [filled(decoder, tokens, lengths) for _ in range(sequences)]
        yield {"label": label, "sequences": sequences, **ours(batch, steps)}
        del batch


def settings(tokens: int, layers: int):
    """``(label, sequences, entries of each head in each layer)``: what the methods leave."""
    draw = torch.distributions.Dirichlet(torch.full((8,), 2.0))
    torch.manual_seed(0)
    fifth, twentieth = tokens // 5, tokens // 20
    equal = [[fifth] * 8] * layers
    # Ada-KV: a fifth of the layer's budget shared equally, the rest by need.
    shares = [(0.2 / 8 + 0.8 * draw.sample()) * 8 * fifth for _ in range(layers)]
    by_head = [share.clamp(max=tokens).int().tolist() for share in shares]
    # LaProx: one budget for all heads of all layers.
    draw = torch.distributions.Dirichlet(torch.full((layers * 8,), 1.0))
    share = draw.sample() * layers * 8 * twentieth
    anywhere = share.clamp(max=tokens).int().reshape(layers, 8).tolist()
    yield "full cache", 1, [[tokens] * 8] * layers
    yield "20%, equal heads (NACL, SnapKV)", 1, equal
    yield "20%, ragged in a layer (Ada-KV)", 1, by_head
    yield "5%, ragged over the model (LaProx)", 1, anywhere
    yield "20%, equal heads", 10, equal
    yield "5%, ragged over the model", 100, anywhere


def filled(decoder: TorchDecoder, tokens: int, lengths: list[list[int]]) -> Session:
    """A session that has seen so many tokens and holds random entries."""
    (session,) = prefill(decoder, [1], [build("full")])
    session.cache = KVCache(seen=tokens)
    for heads in lengths:
        shape = (sum(heads), decoder.head_dim)
        keys, values = (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale for scale in (0.3, 1)
        )
        session.cache.layers.append(LayerCache(keys, values, heads))
    return session


def ours(sessions: list[Session], steps: int) -> dict:
    """Both ways of decoding, which must agree to the bit."""
    held = sum(session.cache.nbytes for session in sessions)
    loop, one_by_one, _ = timed(sessions, steps, 0)
    recorded, replayed, recording = timed(sessions, steps, cuda_graph.WORTH)
    assert torch.equal(loop, recorded), "the graph's logits are not the loop's"
    return {
        "cache_bytes": held,
        "graph_ms": replayed,
        "loop_ms": one_by_one,
        "recording_ms": recording,
    }


def timed(sessions: list[Session], steps: int, expected: int) -> tuple[torch.Tensor, float, float]:
    """A batch that expects so many steps, on forks.

    Returns:
        The last logits, median milliseconds of a step, the choice of its tokens included, and those
        of the second one.
    """
    batch, times = Batch([session.fork() for session in sessions], expected), []
    for session in batch.sessions:
        session.reserve(steps + 3)
    logits = torch.stack([session.logits for session in sessions])
    for _ in range(steps + 3):
        start = time.perf_counter()
        logits = batch.step(logits.argmax(dim=-1).tolist())
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return logits, round(statistics.median(times[3:]) * 1e3, 3), round(times[1] * 1e3, 1)


def concatenating(model: LlamaForCausalLM, tokens: int, steps: int) -> dict:
    """transformers as ``generate`` runs it: a cache that concatenates, kernel by kernel."""
    cache = DynamicCache()
    for layer, pair in enumerate(random_entries(model, tokens)):
        cache.update(*pair, layer)
    return theirs(model, cache, tokens, steps)


def compiled(model: LlamaForCausalLM, tokens: int, steps: int) -> dict:
    """transformers with a static cache, compiled so that its launches cost least."""
    cache = StaticCache(config=model.config, max_cache_len=tokens + steps + 3)
    heads, head_dim = model.config.num_key_value_heads, model.config.head_dim
    cache.early_initialization(1, heads, head_dim, model.dtype, model.device)
    for layer, (keys, values) in zip(cache.layers, random_entries(model, tokens)):
        layer.keys[:, :, :tokens], layer.values[:, :, :tokens] = keys, values
    return theirs(torch.compile(model, mode="reduce-overhead"), cache, tokens, steps)


def random_entries(model: LlamaForCausalLM, tokens: int) -> Iterator[tuple]:
    """Keys and values of each layer."""
    shape = (1, model.config.num_key_value_heads, tokens, model.config.head_dim)
    for _ in range(model.config.num_hidden_layers):
        yield tuple(torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))


def theirs(run: Callable, cache: Cache, tokens: int, steps: int) -> dict:
    """Milliseconds of a step, the choice of its token included."""
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    device = cache.layers[0].keys.device
    token, times = torch.zeros((1, 1), dtype=torch.int64, device=device), []
    for step in range(steps + 3):
        start = time.perf_counter()
        with torch.no_grad():
            position = torch.tensor([tokens + step], device=device)
            out = run(
                token,
                past_key_values=cache,
                cache_position=position,
                position_ids=position.unsqueeze(0),
            )
        token = out.logits[:, -1:].argmax(-1).clone()
        token.tolist()
        times.append(time.perf_counter() - start)
    del cache, out
    gc.collect()
    torch.cuda.empty_cache()
    return {"cache_bytes": held, "loop_ms": round(statistics.median(times[3:]) * 1e3, 3)}


if __name__ == "__main__":
    main()
