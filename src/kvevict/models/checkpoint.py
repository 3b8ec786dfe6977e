"""A checkpoint read from disk, and how a model directory is read, without any framework.

Every source (Hugging Face or PaddleNLP directory, GGUF file) becomes one ``Checkpoint``: the
configuration in Hugging Face's keys and the tensors under Hugging Face's names, each read only
when it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvevict.errors import InputError
from kvevict.models.chat import ChatTemplate, read_chat_template
from kvevict.models.config import max_positions, normalise_config
from kvevict.models.families import Family, by_config
from kvevict.models.tokenizer import Tokenizer, read_tokenizer
from kvevict.models.weights import LazyTensor, Tensors, read_safetensors

PICKLED = (".bin", ".pdparams", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass
class Checkpoint:
    """What a model is made of, independent of the framework that will run it.

    Attributes:
        source: where it comes from, for messages.
        config: Hugging Face's keys, as :func:`normalise_config` leaves them.
        tensors: by Hugging Face's names, linear weights ``[out, in]``.
        tokenizer: its own.
        eos_ids: tokens that end a generation.
        chat: its chat template; None for a model without one.
    """

    source: str
    config: dict[str, Any]
    tensors: Tensors
    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]
    chat: ChatTemplate | None = None

    @property
    def family(self) -> Family:
        """Its entry."""
        return by_config(self.config, self.source)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model computes as it was meant to."""
        return max_positions(self.config)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that the model is made of, and their shapes."""
        return self.family.shapes(self.config)

    @property
    def settings(self) -> dict[str, Any]:
        """What the config classes of both frameworks take by the same names; all but RoPE's."""
        eos, pad = list(self.eos_ids), self.config.get("pad_token_id")
        return {
            **{key: v for key, v in self.config.items() if not key.startswith("rope_")},
            "bos_token_id": self.config.get("bos_token_id"),
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            # Some files name one beyond the vocabulary, which no embedding takes.
            "pad_token_id": pad if pad in range(self.config["vocab_size"]) else None,
        }

    def check(self) -> None:
        """See that all tensors are there, and none beside them, without reading any.

        Raises:
            InputError: one is missing, unknown or of another shape.
        """
        shapes = self.shapes
        # What a tied model's file may also hold is never read.
        known = {*shapes, "lm_head.weight"} if self.config.get("tie_word_embeddings") else shapes
        for name in shapes:
            if name not in self.tensors:
                raise InputError(f"{self.source} lacks the tensor {name}")
        for name in self.tensors:
            if name not in known and not name.endswith("rotary_emb.inv_freq"):
                raise InputError(
                    f"{self.source} has a tensor that {self.family.name} does not: {name}"
                )
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape:
                raise InputError(
                    f"{self.source}: the tensor {name} has the shape "
                    f"{list(self.tensors[name].shape)} where the configuration asks for "
                    f"{list(shape)}"
                )


def read_directory(path: Path) -> Checkpoint:
    """Read a directory in Hugging Face or PaddleNLP layout.

    Raises ``InputError`` for a missing or malformed file, another family, or pickled weights.
    """
    config_file = path / "config.json"
    if not config_file.is_file():
        raise InputError(f"{path} has no config.json, so it is not a model directory")
    config = normalise_config(read_json(config_file), str(config_file))
    tensors = {}
    for file in _weight_files(path):
        tensors.update(read_safetensors(file))
    prefix = f"{config['model_type']}."
    if any(name.startswith(prefix) for name in tensors):
        tensors = _from_paddlenlp(tensors, prefix)
    generation, texts = (
        read_json(path / file) if (path / file).is_file() else {}
        for file in ("generation_config.json", "tokenizer_config.json")
    )
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    eos_ids = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    chat = read_chat_template(path, texts)
    return Checkpoint(str(path), config, tensors, read_tokenizer(path), eos_ids, chat)


def read_json(path: Path) -> dict:
    """A JSON object from ``path``; ``InputError`` names the file otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value


def pickle_error(path: Path) -> InputError:
    """The error for weights that only unpickling could read, which could run any code."""
    return InputError(
        f"{path} holds pickled weights, which are never loaded because a pickle can run any code: "
        "use the model's safetensors or GGUF file"
    )


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map")
        files = [path / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{path} lacks {missing[0]}, which {index.name} names")
        return files
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    for file in sorted(path.iterdir()):
        if file.suffix in PICKLED:
            raise pickle_error(file)
    raise InputError(f"{path} has no weights: neither model.safetensors nor its index is there")


def _from_paddlenlp(tensors: Tensors, prefix: str) -> Tensors:
    # PaddleNLP says "llama." for "model." and stores linear weights as [in, out].
    def renamed(name: str) -> str:
        return "model." + name[len(prefix) :] if name.startswith(prefix) else name

    def transposed(tensor: LazyTensor) -> LazyTensor:
        return LazyTensor(tensor.shape[::-1], lambda: tensor().T)

    return {
        renamed(name): transposed(tensor) if is_linear(name) else tensor
        for name, tensor in tensors.items()
    }


def is_linear(name: str) -> bool:
    """Whether ``name`` is the weight of a linear layer, which Paddle stores transposed."""
    return name.endswith("_proj.weight") or name == "lm_head.weight"
