"""Whether a further sequence fits into memory beside those that are there."""

from __future__ import annotations

from math import ceil

from ..attention import RepeatedChunks
from ..environment import free_host_bytes
from ..methods import Policy
from ..quantised import entry_bytes
from ..tensors import Tensor, namespace
from .prefilling import CHUNK
from .session import Decoder

MOST_ROWS = 256  # of a batch for which memory is no bound: beyond that nothing is gained
MARGIN = 0.9  # of what is free: allocators round up, and leave gaps


def fits(
    model: Decoder, policies: list[Policy], tokens: int, new_tokens: int, running: int
) -> bool:
    """Whether a prompt of ``tokens`` tokens fits beside the sequences that are ``running``.

    Args:
        policies: one or more, which share the prompt's prefill.
        new_tokens: of each answer.
    """
    free = free_bytes(model.output_projection(0))
    needed = needed_bytes(model, policies, tokens, new_tokens)
    return running < MOST_ROWS and (free is None or needed <= MARGIN * free)


def needed_bytes(model: Decoder, policies: list[Policy], tokens: int, new_tokens: int) -> int:
    """What a prompt takes at most: its caches, and a layer's prefill beside them."""
    w_o = model.output_projection(0)
    kv_heads, group, head_dim, hidden = w_o.shape
    size = w_o.element_size()
    whole = entry_bytes(None, head_dim, size)
    entries = sum(
        policy.entries(tokens) * _held_bytes(policy, head_dim, size) + new_tokens * whole
        for policy in policies
    )
    cache = ceil(kv_heads * model.layers * entries)
    # The hidden state before and after the layer and while it is joined; queries, keys and values
    # by chunks and joined, and attention's result. A chunk's MLP is some times as wide.
    layer = tokens * (4 * hidden + 3 * head_dim * kv_heads * (group + 2))
    if any(_repeats(policy, tokens) for policy in policies):
        # The chunks' hidden states, and keys and values once more with a chunk's behind them.
        layer += tokens * 2 * (hidden + head_dim * kv_heads)
    return cache + size * (layer + 16 * hidden * min(tokens, CHUNK))


def _held_bytes(policy: Policy, head_dim: int, size: int) -> float:
    """Of an entry that is kept, at most; a model-wide choice is quantised when it is whole."""
    held = entry_bytes(policy.kv_dtype, head_dim, size)
    if policy.kv_dtype and policy.allocator.scope == "model":
        held += entry_bytes(None, head_dim, size)
    return held


def _repeats(policy: Policy, tokens: int) -> bool:
    """Whether a prompt of so many tokens is repeated for a policy."""
    if not policy.scorer.prompt_only or policy.entries(tokens) == tokens:
        return False
    asked = policy.scorer.statistics(policy.shape(tokens))
    return any(isinstance(statistic, RepeatedChunks) for statistic in asked)


def free_bytes(like: Tensor) -> int | None:
    """Bytes that can still be had where ``like`` lies; None where nothing tells."""
    if "cpu" in str(like.device):
        return free_host_bytes()
    cuda = namespace(like).cuda
    return cuda.mem_get_info()[0] + cuda.memory_reserved() - cuda.memory_allocated()
