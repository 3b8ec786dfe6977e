"""A dense Llama in float64 NumPy, written from the formulas, to check loaded models against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvevict.backends import LoadedModel

DIMS = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def random_weights(rng: np.random.Generator, tied: bool = False) -> dict[str, np.ndarray]:
    """Float32 weights of `DIMS` under Hugging Face's names, linear ones `[out, in]`."""
    d, ff, v = DIMS["hidden_size"], DIMS["intermediate_size"], DIMS["vocab_size"]
    kv = d // DIMS["num_attention_heads"] * DIMS["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not tied:
        shapes["lm_head.weight"] = (v, d)
    for i in range(DIMS["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, shape in {
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (ff, d),
            "mlp.up_proj": (ff, d),
            "mlp.down_proj": (d, ff),
        }.items():
            shapes[f"{layer}.{name}.weight"] = shape
    return {n: rng.normal(0.0, 0.3, s).astype(np.float32) for n, s in shapes.items()}


def logits(
    weights: Mapping[str, np.ndarray],
    ids: list[int],
    frequencies: np.ndarray,
    interleaved: bool = False,
    dims: Mapping[str, int] = DIMS,
    visible: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Logits `[tokens, vocab]` of a model of `dims`.

    `interleaved` rotates dimensions (2i, 2i+1) together, as GGUF's Llama weights ask for, instead
    of (i, i + head_dim/2). `visible` says for each layer which keys a row sees, bool `[kv_heads,
    tokens, tokens]`: all before it and its own, unless some were evicted.
    """
    w = {name: np.asarray(array, dtype=np.float64) for name, array in weights.items()}
    heads, kv_heads = dims["num_attention_heads"], dims["num_key_value_heads"]
    n, d = len(ids), dims["hidden_size"] // heads
    if visible is None:
        visible = [np.tri(n, dtype=bool)[None]] * dims["num_hidden_layers"]
    angles = np.arange(n)[:, None, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    first = np.arange(0, d, 2) if interleaved else np.arange(d // 2)
    second = first + 1 if interleaved else first + d // 2

    def rotate(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    x = w["model.embed_tokens.weight"][ids]
    for i, seen in enumerate(visible):
        layer = f"model.layers.{i}."
        h = _norm(x, w[layer + "input_layernorm.weight"])
        q, k, v = ((h @ w[layer + f"self_attn.{p}_proj.weight"].T).reshape(n, -1, d) for p in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(t, heads // kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
        scores = np.where(np.repeat(seen, heads // len(seen), axis=0), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        o = np.einsum("hqk,khd->qhd", p, v).reshape(n, -1)
        x = x + o @ w[layer + "self_attn.o_proj.weight"].T
        h = _norm(x, w[layer + "post_attention_layernorm.weight"])
        gate = h @ w[layer + "mlp.gate_proj.weight"].T
        up = h @ w[layer + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[layer + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return _norm(x, w["model.norm.weight"]) @ head.T


def plain_frequencies(theta: float) -> np.ndarray:
    d = DIMS["hidden_size"] // DIMS["num_attention_heads"]
    return np.array([theta ** (-2 * i / d) for i in range(d // 2)])


def paddle_logits(model, ids: list[int]) -> np.ndarray:
    import paddle

    with paddle.no_grad():
        out = model(paddle.to_tensor([ids]))
    out = out[0] if isinstance(out, tuple) else out
    return out[0].astype("float32").numpy()


def loaded_logits(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    """Logits `[tokens, vocab]` of a loaded model, in whichever framework."""
    if loaded.framework == "paddle":
        return paddle_logits(loaded.model, ids)
    import torch

    with torch.no_grad():
        return loaded.model(torch.tensor([ids])).logits[0].float().numpy()


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
