"""A random Llama of a few kilobytes as a Hugging Face directory, and small data files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from benchmarks import synthetic

LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, POSITIONS = 2, 4, 2, 16, 96, 2048
ENTRY_BYTES = 2 * HEAD_DIM * 4  # a key and a value in float32


def write_llama(path: Path, poison: float | None = None, scale: float = 0.3, **config) -> Path:
    """A model directory; one token is one byte. ``poison`` becomes one of the weights.

    ``scale`` is the standard deviation of the matrices.
    """
    path.mkdir(parents=True)
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<eos>"] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))

    draw, hidden = np.random.default_rng(0), HEADS * HEAD_DIM

    def matrix(*shape: int) -> np.ndarray:
        return draw.normal(scale=scale, size=shape).astype("float32")

    ones = np.ones(hidden, "float32")
    tensors = {
        "model.embed_tokens.weight": 3 * matrix(len(vocabulary), hidden),
        "model.norm.weight": ones,
        "lm_head.weight": matrix(len(vocabulary), hidden),
    }
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, hidden),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (MLP, hidden),
            "mlp.up_proj": (MLP, hidden),
            "mlp.down_proj": (hidden, MLP),
        }
        weights = {name: matrix(*shape) for name, shape in shapes.items()}
        weights.update(input_layernorm=ones, post_attention_layernorm=ones)
        tensors.update({f"model.layers.{layer}.{k}.weight": w for k, w in weights.items()})
    if poison is not None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = poison
    save_file(tensors, str(path / "model.safetensors"))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(vocabulary),
        "hidden_size": hidden,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": POSITIONS,
        "rope_theta": 10000.0,
        "eos_token_id": vocabulary["<eos>"],
        "tie_word_embeddings": False,
        **config,
    }
    (path / "config.json").write_text(json.dumps(settings))
    return path


def write_lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_data(path: Path, task: str, examples: int, length: int = 80) -> Path:
    """Synthetic examples of about ``length`` tokens, as words go."""
    rows = [synthetic.make_example(task, index, length) for index in range(examples)]
    return write_lines(path / f"{task}.jsonl", *rows)


def write_questions(path: Path, contexts: int, questions: int) -> Path:
    """Several questions on each context, one after the other."""
    rows = [
        {"context": f"{c} is a letter. " * 12, "input": f"Is {c} number {q}?", "answer": "1"}
        for c in "ABCDEFGH"[:contexts]
        for q in range(questions)
    ]
    return write_lines(path / "passkey.jsonl", *rows)
