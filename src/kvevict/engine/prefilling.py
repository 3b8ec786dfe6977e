"""Prefill: the prompt once, layer by layer, evicting for every policy as each layer is done."""

from __future__ import annotations

from ..attention import ColumnStatistic, Statistic, attend
from ..errors import InputError
from ..methods import LayerView, Policy
from ..tensors import Tensor, namespace
from .decode_eviction import DecodeEviction
from .prompt_eviction import Eviction
from .session import Decoder, Session, check_positions

# Tokens that pass through a layer's projections and MLP at a time: their intermediate results,
# many times wider than the hidden state, then never exist for the whole prompt.
CHUNK = 4096


def prefill(
    model: Decoder,
    ids: list[int],
    policies: list[Policy],
    example: int = 0,
    record: bool = False,
    question_tokens: int | None = None,
) -> list[Session]:
    """Run the prompt once, evicting for every policy as each layer is done.

    Attention over the prompt is never affected by eviction, so one pass serves all policies, and
    each gets what a pass of its own would give.

    Args:
        ids: the prompt, at least one token.
        policies: at least one.
        example: counts into the noise of the policies that draw.
        record: note in each layer's cache which positions were kept.
        question_tokens: how many of the last tokens are the question, for the policies whose
            proxies these are.

    Returns:
        A session for each policy, its next logits ready.

    Raises:
        InputError: no tokens, or more than the model has positions; a question longer than the
            prompt; a part of a policy that breaks its contract.
        FloatingPointError: a policy's scores are not finite.
    """
    if not ids:
        raise InputError("the prompt has no tokens")
    sessions, hidden = prefill_hidden(
        model, model.embed(ids), policies, example, record, question_tokens
    )
    logits = model.logits(hidden[:, -1:])
    for session in sessions:
        session.logits = logits
    return sessions


def prefill_hidden(
    model: Decoder,
    hidden: Tensor,
    policies: list[Policy],
    example: int = 0,
    record: bool = False,
    question_tokens: int | None = None,
) -> tuple[list[Session], Tensor]:
    """As :func:`prefill`, from embeddings to the last layer's output."""
    n = hidden.shape[1]
    check_positions(model, n)
    if question_tokens is not None and not 0 < question_tokens <= n:
        raise InputError(f"a prompt of {n} tokens cannot end in a question of {question_tokens}")
    evictions = [
        Eviction(p, n, model.layers, model.kv_heads, example, record, question_tokens)
        for p in policies
    ]
    wanted = tuple(dict.fromkeys(s for e in evictions for s in e.statistics))
    spans = [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    for layer in range(model.layers):
        q, k, v = _join([model.project(layer, hidden[:, span], span.start) for span in spans])
        out, lse, columns = attend(q, k, v, wanted)
        finite = lse.isfinite().all() if wanted else None
        del q, lse
        scored: dict[object, Tensor] = {}
        for eviction in evictions:
            if eviction.statistics:  # a count of weights would not show it
                eviction.checks.watch(f"the attention weights of layer {layer}", finite)
            eviction.add_layer(_view(model, eviction, layer, k, v, columns), scored)
        del k, v, columns, scored
        out = out.swapaxes(1, 2)
        parts = [
            model.finish_layer(layer, hidden[:, span], out[:, span].flatten(2)) for span in spans
        ]
        del out
        hidden = parts[0] if len(parts) == 1 else namespace(hidden).cat(parts, dim=1)
        del parts
    for eviction in evictions:
        eviction.finish()
    return [Session(model, e.cache, DecodeEviction.for_policy(e)) for e in evictions], hidden


def _view(
    model: Decoder,
    eviction: Eviction,
    layer: int,
    k: Tensor,
    v: Tensor,
    reported: dict[Statistic, Tensor],
) -> LayerView:
    return LayerView(
        statistics=tuple(_by_group(s, reported[s], k.shape[1]) for s in eviction.statistics),
        keys=k.squeeze(0),
        values=v.squeeze(0),
        w_o=model.output_projection(layer),
        noise_keys=eviction.noise_keys(layer),
    )


def _by_group(statistic: Statistic, reported: Tensor, kv_heads: int) -> Tensor:
    """What attention reported of one prompt as a scorer wants it (:class:`LayerView`)."""
    reported = reported.squeeze(0)
    if isinstance(statistic, ColumnStatistic) and statistic.per_kv_head:
        return reported
    return reported.reshape(kv_heads, -1, *reported.shape[1:])


def _join(parts: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Chunks of q, k and v as one of each; a chunk is let go as soon as it has been copied."""
    if len(parts) == 1:
        return list(parts[0])
    chunks = [list(own) for own in zip(*parts)]
    parts.clear()
    ns = namespace(chunks[0][0])
    return [ns.cat(chunks.pop(0), dim=2) for _ in range(3)]
