"""What the queries of a prompt have in common, before their positions are put into them."""

from __future__ import annotations

from ..attention import Moments, QueryMoments
from ..rotary import rotate, unrotate
from ..tensors import Tensor
from .session import Decoder

CHUNK = 4096  # queries of each head that are held in float32 at a time


def query_moments(
    model: Decoder, layer: int, q: Tensor, statistic: QueryMoments, kv_heads: int
) -> Moments:
    """Mean and covariance, chunk by chunk.

    Chunks are centred on their own means before they are joined (Chan, Golub and LeVeque, 1979):
    a sum of squares would lose a covariance that is small beside the mean, as biases make it.

    Args:
        q: ``[1, query_heads, tokens, head_dim]`` with RoPE; it is taken off here.
    """
    _, query_heads, tokens, head_dim = q.shape
    count = 0
    mean = q.new_zeros((query_heads, 1, head_dim)).float()
    scatter = q.new_zeros((query_heads, head_dim, head_dim)).float()
    for start in range(min(statistic.skip, tokens - 1), tokens, CHUNK):
        part = q[0, :, start : start + CHUNK].float()
        size = part.shape[1]
        part = unrotate(part, model.rotary(layer, start, size))
        own = part.mean(dim=1, keepdim=True)
        part = part - own
        apart, share = own - mean, size / (count + size)
        scatter = scatter + part.swapaxes(1, 2) @ part
        scatter = scatter + apart.swapaxes(1, 2) * apart * (count * share)
        mean = mean + apart * share
        count += size
    shape = (kv_heads, -1, head_dim)
    return Moments(mean.reshape(shape), (scatter / count).reshape(*shape, head_dim))


def rotate_ahead(model: Decoder, layer: int, n: int, x: Tensor, positions: int) -> Tensor:
    """``x [..., head_dim]`` as RoPE will turn it on average over the positions after a prompt.

    Args:
        n: tokens of the prompt.
        positions: how many; fewer where the model has no more.
    """
    start = min(n, model.max_positions - 1)
    tables = model.rotary(layer, start, min(positions, model.max_positions - start))
    return rotate(x, tables and tuple(table.mean(dim=0) for table in tables))
