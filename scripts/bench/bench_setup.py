"""The model, the card's ceilings and the sizes that one run of bench_decode.py is about."""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import dataclass

import torch
from random_llama import GIB, LLAMA_8B, TINY, random_llama
from transformers import LlamaForCausalLM

from kvevict.backends.torch.decoder import TorchDecoder

LIMIT_BYTES = 80e9  # that weights, caches and workspace have together
__all__ = ["GIB", "Setup", "make_setup"]


@dataclass
class Setup:
    """What every part is given.

    Attributes:
        tokens, prompt: lengths, see bench_decode.py.
        bytes_per_s, flop_per_s: ceilings of this card.
        weight_bytes: that a step reads.
        limit_bytes: memory that sequences side by side may take, weights and workspace included.
        whole: requests that are run from beginning to end.
    """

    model: LlamaForCausalLM
    decoder: TorchDecoder
    card: str
    tokens: int
    prompt: int
    steps: int
    repeats: int
    bytes_per_s: float
    flop_per_s: float
    weight_bytes: int
    limit_bytes: float
    whole: int

    @property
    def layers(self) -> int:
        return self.decoder.layers

    @property
    def on_gpu(self) -> bool:
        return self.model.device.type == "cuda"

    @property
    def token_bytes(self) -> int:
        """Of a token's entries in a full cache."""
        return 2 * 2 * self.layers * self.decoder.kv_heads * self.decoder.head_dim

    def floor_ms(self, cache_bytes: float) -> float:
        """Of a step, which reads all weights and entries once."""
        return (self.weight_bytes + cache_bytes) / self.bytes_per_s * 1e3

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back what nobody holds, and count the peak anew."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_reserved() if self.on_gpu else 0


def make_setup(args: argparse.Namespace) -> Setup:
    """Measure the card, then fill it."""
    if torch.cuda.is_available():
        from gpu_timing import ceilings

        device, card, rates = "cuda", torch.cuda.get_device_name(), ceilings()
        torch.cuda.empty_cache()
    else:
        device, card, rates = "cpu", "no GPU: a trial", host_rates()
    shape = TINY if args.tiny else LLAMA_8B
    model = random_llama(min(args.layers, 2) if args.tiny else args.layers, shape, device)
    weights = sum(p.nbytes for p in model.parameters()) - model.model.embed_tokens.weight.nbytes
    return Setup(
        model,
        TorchDecoder(model),
        card,
        min(args.tokens, 300) if args.tiny else args.tokens,
        min(args.prompt, 200) if args.tiny else args.prompt,
        args.steps,
        args.repeats,
        rates["bytes_per_s"],
        rates["flop_per_s"],
        weights,
        weights + 1e6 if args.tiny else LIMIT_BYTES,
        args.whole,
    )


def host_rates() -> dict[str, float]:
    """For a trial: a copy and a product on the CPU, timed once."""
    x = torch.randn(1 << 20)
    start = time.perf_counter()
    y = -x
    copied = time.perf_counter()
    y.view(1024, 1024) @ y.view(1024, 1024)
    done = time.perf_counter()
    return {"bytes_per_s": 8 * len(x) / (copied - start), "flop_per_s": 2**31 / (done - copied)}
