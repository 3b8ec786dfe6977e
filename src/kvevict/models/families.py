"""The model families that can be run, one entry each: all that tells one from another.

They share Llama's arithmetic: RMSNorm before attention and before the MLP, grouped-query attention
scaled by 1/√head_dim, rotary positions whose halves turn together, an MLP gated by SiLU. What a
family has beside that stands in its entry. What neither covers is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvevict.errors import InputError

_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as people say it.
        architecture: the class in transformers, and in PaddleNLP where that has one, as in
            ``architectures`` of config.json. Its layers have Llama's names.
        model_type: as in config.json; PaddleNLP's models hold their layers under this name.
        paddle: whether PaddleNLP has it.
        gguf: ``general.architecture`` of its GGUF files; None where they cannot be read.
        permuted: GGUF files hold the rows of q and k in pairs that turn together.
        biases: the projections of attention that have a bias.
        qk_norm: queries and keys pass an RMSNorm over head_dim before they are turned.
        nope: ``no_rope_layers`` says which layers turn nothing.
        constants: keys of config.json, and the one value of each that the arithmetic here has.
        defaults: what transformers takes for keys that a config.json leaves out, where that
            differs from Llama's.
        ends: texts of tokens that end an answer, where a GGUF file may name too few.
    """

    name: str
    architecture: str
    model_type: str
    paddle: bool = False
    gguf: str | None = None
    permuted: bool = False
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    nope: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[str, ...] = ()

    def shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The tensors of a model by Hugging Face's names; linear weights are ``[out, in]``."""
        hidden, mlp, head = (config[k] for k in ("hidden_size", "intermediate_size", "head_dim"))
        q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
        rows = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": hidden}
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            **{f"self_attn.{name}.weight": (rows[name], hidden) for name in _QKV},
            "self_attn.o_proj.weight": (hidden, q),
            "mlp.gate_proj.weight": (mlp, hidden),
            "mlp.up_proj.weight": (mlp, hidden),
            "mlp.down_proj.weight": (hidden, mlp),
            **{f"self_attn.{name}.bias": (rows[name],) for name in self.biases},
        }
        if self.qk_norm:
            layer.update({f"self_attn.{x}_norm.weight": (head,) for x in "qk"})
        shapes = {
            "model.embed_tokens.weight": (config["vocab_size"], hidden),
            "model.norm.weight": (hidden,),
        }
        if not config.get("tie_word_embeddings"):
            shapes["lm_head.weight"] = (config["vocab_size"], hidden)
        for index in range(config["num_hidden_layers"]):
            shapes.update({f"model.layers.{index}.{name}": s for name, s in layer.items()})
        return shapes


_QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")  # of a turn, and of a text

FAMILIES = (
    Family("Llama", "LlamaForCausalLM", "llama", paddle=True, gguf="llama", permuted=True),
    Family(
        "Qwen2",
        "Qwen2ForCausalLM",
        "qwen2",
        paddle=True,
        gguf="qwen2",
        biases=_QKV,
        defaults={"num_key_value_heads": 32, "use_sliding_window": False},
        ends=_QWEN_ENDS,
    ),
    Family(
        "Qwen3",
        "Qwen3ForCausalLM",
        "qwen3",
        gguf="qwen3",
        qk_norm=True,
        defaults={"head_dim": 128, "num_key_value_heads": 32, "use_sliding_window": False},
        ends=_QWEN_ENDS,
    ),
    # GGUF files of Mistral say "llama".
    Family(
        "Mistral",
        "MistralForCausalLM",
        "mistral",
        paddle=True,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        "SmolLM3",
        "SmolLM3ForCausalLM",
        "smollm3",
        gguf="smollm3",
        permuted=True,
        nope=True,
        defaults={
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
        },
    ),
)


def by_config(config: Mapping[str, Any], source: str) -> Family:
    """The family that a config.json names.

    Raises:
        InputError: there is no entry for it, or ``model_type`` says another than ``architectures``.
    """
    kind = config.get("model_type")
    names = config.get("architectures") or [kind]
    for family in FAMILIES:
        if {family.architecture, family.model_type} & set(names):
            if kind not in (None, family.model_type):
                raise InputError(f"{source}: model_type {kind!r} is not that of {names[0]}")
            return family
    raise _unknown(names[0], source)


def by_gguf(architecture: str | None, source: str) -> Family:
    """The family of a GGUF file's ``general.architecture``; errors as :func:`by_config`."""
    for family in FAMILIES:
        if family.gguf is not None and family.gguf == architecture:
            return family
    raise _unknown(architecture, source)


def by_class(cls: type, library: str) -> Family | None:
    """The family of a model's class, or of one that is derived from it.

    Args:
        library: ``paddlenlp`` or ``transformers``, where the class must come from. It is known by
            its name, since neither library may be imported for the other's sake.
    """
    for ancestor in cls.__mro__:
        if ancestor.__module__.partition(".")[0] == library:
            for family in FAMILIES:
                if family.architecture == ancestor.__name__:
                    return family
    return None


def unknown_class(cls: type) -> InputError:
    """The error for a model of a class that :func:`by_class` does not know."""
    known = listed(family.architecture for family in FAMILIES)
    return InputError(
        f"evict takes a model of PaddleNLP or transformers that is one of {known}, neither "
        f"wrapped nor compiled, not {cls.__module__}.{cls.__qualname__}"
    )


def listed(names: Iterable[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _unknown(kind: str | None, source: str) -> InputError:
    known = listed(family.name for family in FAMILIES)
    given = f"is {kind}" if kind else "does not say what it is"
    return InputError(f"{source}: {known} models can be loaded, this one {given}")
