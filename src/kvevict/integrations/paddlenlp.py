"""PaddleNLP's Llama: the model taken apart for :mod:`kvevict.generate`, and ``model.generate``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddlenlp.transformers.llama.modeling import LlamaForCausalLM

from ..errors import InputError
from ..generate import prefill_hidden
from ..policies.base import Policy
from ..session import Session
from ..tensors import Tensor


class PaddleNLPDecoder:
    """A ``LlamaForCausalLM`` as a :class:`kvevict.session.Decoder`."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        config = model.config
        if config.fuse_attention_qkv or config.fuse_attention_ffn:
            raise InputError("load the model without fuse_attention_qkv and fuse_attention_ffn")
        self.model = model
        self.layers = config.num_hidden_layers
        self.kv_heads = config.num_key_value_heads
        self.query_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.max_positions = config.max_position_embeddings
        self._rotated: tuple[Any, Any] = (None, None)

    @paddle.no_grad()
    def embed(self, ids: list[int]) -> Tensor:
        """See :class:`~kvevict.session.Decoder`."""
        return self.model.llama.embed_tokens(paddle.to_tensor([ids], dtype="int64"))

    @paddle.no_grad()
    def project(self, layer: int, hidden: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`~kvevict.session.Decoder`."""
        block = self.model.llama.layers[layer]
        attention, tokens = block.self_attn, hidden.shape[1]
        x = _rms_norm(block.input_layernorm, hidden)
        q, k, v = (
            projection(x).reshape([len(hidden), tokens, -1, self.head_dim])
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        cos, sin = self._rotation(start, tokens, q)
        return (
            _rotate(q.swapaxes(1, 2), cos, sin),
            _rotate(k.swapaxes(1, 2), cos, sin),
            v.swapaxes(1, 2),
        )

    def _rotation(self, start: int, tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines ``[tokens, head_dim]``, looked up once for all layers."""
        if self._rotated[0] != (start, tokens):
            rotary = self.model.llama.layers[0].self_attn.rotary_emb
            tables = rotary(like, seq_len=start + tokens)
            cos, sin = (t[:, start:].reshape([tokens, self.head_dim]) for t in tables)
            first, second = sin.chunk(2, dim=-1)
            self._rotated = ((start, tokens), (cos, paddle.concat([-first, second], axis=-1)))
        return self._rotated[1]

    @paddle.no_grad()
    def complete(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """See :class:`~kvevict.session.Decoder`."""
        block = self.model.llama.layers[layer]
        hidden = hidden + block.self_attn.o_proj(mixed)
        x = _rms_norm(block.post_attention_layernorm, hidden)
        # PaddleNLP's swiglu is three times as slow on a CPU as its two parts.
        gated = paddle.nn.functional.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x)
        return hidden + block.mlp.down_proj(gated)

    @paddle.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """See :class:`~kvevict.session.Decoder`."""
        last = _rms_norm(self.model.llama.norm, hidden[:, -1:])
        logits = self.model.lm_head(last).squeeze(1).astype("float32")
        return logits if len(logits) > 1 else logits.squeeze(0)

    @paddle.no_grad()
    def output_projection(self, layer: int) -> Tensor:
        """See :class:`~kvevict.session.Decoder`."""
        weight = self.model.llama.layers[layer].self_attn.o_proj.weight.detach()
        return weight.reshape([self.kv_heads, -1, self.head_dim, weight.shape[-1]])


def _hides_a_token(mask: Tensor) -> bool:
    """Whether a mask of one row, ``[1, N]`` or ``[1, 1, 1, N]``, leaves out any of the prompt.

    Whole numbers are one where a token is seen, floats are added to the scores.
    """
    if mask.size != mask.shape[-1]:
        return False
    hidden = mask < 0 if mask.is_floating_point() else mask.astype("int64") == 0
    return bool(hidden.any())


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on ``[1, heads, tokens, head_dim]``: the halves trade places, the sines have the sign.

    Contiguous heads and tables that broadcast from the left take Paddle's fast path on a CPU, five
    times as fast as PaddleNLP's own.
    """
    x = x.contiguous()
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def _rms_norm(norm: paddle.nn.Layer, x: Tensor) -> Tensor:
    """PaddleNLP's norm squares with ``pow``, ten times as slow on a CPU as a product."""
    wide = x.astype("float32")
    wide = wide * paddle.rsqrt((wide * wide).mean(-1, keepdim=True) + norm.variance_epsilon)
    return wide.astype(norm.weight.dtype) * norm.weight


@contextmanager
def evict(model: LlamaForCausalLM, policy: Policy, example: int = 0) -> Iterator[list[Session]]:
    """Within this context ``model.generate`` and ``model(...)`` keep only what the policy keeps.

    Everything of PaddleNLP's generation is there but beam search: one prompt at a time, greedy or
    sampled. The cache that PaddleNLP passes around is a stand-in of no bytes whose length is the
    number of tokens seen, so that positions go on from the original length.

    Args:
        model: in eval mode.
        policy: such as ``NACL(keep_ratio=0.2)``.
        example: counts into the noise of the policies that draw.

    Yields:
        A list with the session of the last prompt: ``sessions[0].cache.nbytes``. Earlier ones are
        let go, and with them their caches.

    Raises:
        InputError: several prompts in a batch, beam search, or a padded prompt.
    """
    decoder, sessions = PaddleNLPDecoder(model), []

    def forward(input_ids=None, past_key_values=None, inputs_embeds=None, attention_mask=None, **_):
        batch = (input_ids if inputs_embeds is None else inputs_embeds).shape[0]
        if batch != 1:
            raise InputError(f"eviction takes one prompt at a time, without beams, not {batch}")
        hidden = model.llama.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = hidden.detach()
        if past_key_values is None or past_key_values[0] is None:
            if attention_mask is not None and _hides_a_token(attention_mask):
                raise InputError("eviction takes a prompt without padding")
            sessions.clear()
            new, hidden = prefill_hidden(decoder, hidden, [policy], example)
            sessions.extend(new)
        else:
            hidden = sessions[0].extend_hidden(hidden)
        stand_in = paddle.empty([1, sessions[0].cache.seen, decoder.kv_heads, 0])
        last = _rms_norm(model.llama.norm, hidden[:, -1:])
        return last, ((stand_in, stand_in),) * decoder.layers

    attributes = vars(model.llama)  # past PaddleNLP's own patching of assigned forwards
    outer = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield sessions
    finally:
        del attributes["forward"]
        if outer is not None:
            attributes["forward"] = outer
