"""Whether a further sequence fits into memory beside those that are there."""

from __future__ import annotations

from ..environment import free_host_bytes
from ..methods import Policy
from ..tensors import Tensor, namespace
from .prefilling import CHUNK
from .session import Decoder

MARGIN = 0.9  # of what is free: allocators round up, and leave gaps


def fits(model: Decoder, policy: Policy, tokens: int, new_tokens: int) -> bool:
    """Whether there is memory for a prompt of ``tokens`` tokens and an answer of ``new_tokens``."""
    free = free_bytes(model.output_projection(0))
    return free is None or needed_bytes(model, policy, tokens, new_tokens) <= MARGIN * free


def needed_bytes(model: Decoder, policy: Policy, tokens: int, new_tokens: int) -> int:
    """What a sequence takes at most: its cache, and a layer's prefill beside it."""
    w_o = model.output_projection(0)
    kv_heads, group, head_dim, hidden = w_o.shape
    cache = 2 * head_dim * kv_heads * model.layers * (policy.entries(tokens) + new_tokens)
    # The hidden state before and after the layer and while it is joined; queries, keys and values
    # by chunks and joined, and attention's result. A chunk's MLP is some times as wide.
    layer = tokens * (4 * hidden + 3 * head_dim * kv_heads * (group + 2))
    return w_o.element_size() * (cache + layer + 16 * hidden * min(tokens, CHUNK))


def free_bytes(like: Tensor) -> int | None:
    """Bytes that can still be had where ``like`` lies; None where nothing tells."""
    if "cpu" in str(like.device):
        return free_host_bytes()
    cuda = namespace(like).cuda
    return cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated()
