"""Paddle and PyTorch behind one small contract, and how a model is loaded onto either.

Nothing but this module imports a backend, and it imports only the one that is asked for.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from kvevict import environment
from kvevict.engine.session import Decoder, Session
from kvevict.errors import InputError
from kvevict.methods import Policy
from kvevict.models.chat import ChatTemplate
from kvevict.models.checkpoint import Checkpoint
from kvevict.models.families import by_class
from kvevict.models.identity import model_identity
from kvevict.models.source import read_checkpoint
from kvevict.models.tokenizer import Tokenizer
from kvevict.repetition import Repetition

DTYPES = ("float32", "bfloat16", "float16")
FRAMEWORKS = {"paddle": ("paddle", "paddlenlp"), "pytorch": ("torch", "transformers")}
SETUP = {
    "paddle": "makes .venv, whose bin/python has it",
    "pytorch": "--with-torch makes .venv-torch, whose bin/python has it",
}
# Distributions whose versions a record needs; builds for a GPU carry another name.
DISTRIBUTIONS = {
    "paddle": {"paddle": ("paddlepaddle", "paddlepaddle-gpu"), "paddlenlp": ("paddlenlp",)},
    "pytorch": {"torch": ("torch",), "transformers": ("transformers",), "triton": ("triton",)},
}


class Backend(Protocol):
    """What ``backends/paddle`` and ``backends/torch`` offer, each in its framework's own types."""

    def use_device(self, device: str | None) -> Any:
        """Find and make current what ``device`` names: "cpu", "gpu", "gpu:1"; None for the best."""

    def choose_dtype(self, wanted: str | None, device: Any) -> str:
        """By default float32 on a CPU; on a GPU bfloat16 where it has that, else float16."""

    def device_name(self, device: Any) -> str:
        """ "cpu", or the GPU's name."""

    def peak_device_bytes(self) -> int | None:
        """Most memory allocated on the current GPU so far, in bytes; None on a CPU."""

    def build(self, checkpoint: Checkpoint, dtype: str, device: Any) -> Any:
        """The model of PaddleNLP or transformers in eval mode on ``device``."""

    def decoder(self, model: Any, products: Mapping[str, str] | None = None) -> Decoder:
        """That model taken apart; ``products`` as in :meth:`LoadedModel.decoder`."""

    def evict(
        self, model: Any, policy: Policy, example: int
    ) -> AbstractContextManager[list[Session]]:
        """Eviction within the model's own ``generate``: :func:`kvevict.evict`."""


@dataclass
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: of PaddleNLP or transformers, in eval mode.
        framework: ``paddle`` or ``pytorch``.
        dtype: the type of its weights.
        device: what it lies on: "cpu", or the name of a GPU.
        tokenizer: its own.
        name: what runs are named after.
        max_positions: tokens of a sequence that it has positions for.
        eos_ids: tokens that end an answer.
        chat: its chat template; None for a model without one.
        path, source: the model as it was asked for, and where it was read from.
    """

    model: Any
    framework: str
    dtype: str
    device: str
    tokenizer: Tokenizer
    name: str
    max_positions: int
    eos_ids: tuple[int, ...]
    chat: ChatTemplate | None
    path: str
    source: str

    @cached_property
    def identity(self) -> dict[str, str]:
        """What tells the model from others: :func:`~kvevict.models.identity.model_identity`."""
        return model_identity(self.path, self.source)

    @cached_property
    def repetition(self) -> Repetition:
        """How it is made to repeat a context, which KVzip scores by."""
        return Repetition.of(self.tokenizer, self.chat)

    def decoder(self, products: Mapping[str, str] | None = None) -> Decoder:
        """The model taken apart for :mod:`kvevict.engine`.

        Args:
            products: what multiplies by the weights on a CPU, as another decoder's ``products``
                says; as far as that cannot be had, and by default, whatever is fastest.
        """
        return backend(self.framework).decoder(self.model, products)


def load(
    model: str | Path | Checkpoint,
    dtype: str | None = None,
    device: str | None = None,
    framework: str = "paddle",
) -> LoadedModel:
    """Load a model.

    Args:
        model: what :func:`~kvevict.models.source.read_checkpoint` takes, or what it returned.
        dtype: float32, bfloat16 or float16; by default float32 on a CPU, and on a GPU bfloat16
            where it has that, else float16.
        device: "cpu", "gpu" or "gpu:<n>"; by default a GPU where there is one.
        framework: ``paddle`` or ``pytorch``.

    Raises:
        InputError: with one sentence on what is wrong with any of these.
    """
    place, dtype = use_device(device, dtype, framework)
    checkpoint = model if isinstance(model, Checkpoint) else read_checkpoint(str(model))
    check_framework(checkpoint, framework)
    own = backend(framework)
    return LoadedModel(
        model=own.build(checkpoint, dtype, place),
        framework=framework,
        dtype=dtype,
        device=own.device_name(place),
        tokenizer=checkpoint.tokenizer,
        name=Path(os.path.abspath(checkpoint.source if checkpoint is model else model)).name,
        max_positions=checkpoint.max_positions,
        eos_ids=checkpoint.eos_ids,
        chat=checkpoint.chat,
        path=checkpoint.source if checkpoint is model else str(model),
        source=checkpoint.source,
    )


def check_framework(checkpoint: Checkpoint, framework: str) -> None:
    """Refuse what transformers runs and PaddleNLP does not.

    Raises:
        InputError: PaddleNLP lacks the family, or takes head_dim for hidden_size / heads.
    """
    if framework != "paddle":
        return
    family, config = checkpoint.family, checkpoint.config
    width = config["num_attention_heads"] * config["head_dim"]
    lacks = None
    if not family.paddle:
        lacks = f"no {family.name} models"
    elif width != config["hidden_size"]:
        lacks = f"{family.name} models only without a head_dim of their own ({config['head_dim']})"
    if lacks:
        raise InputError(f"{checkpoint.source}: PaddleNLP has {lacks}; framework pytorch runs it")


def use_device(device: str | None, dtype: str | None, framework: str) -> tuple[Any, str]:
    """What ``device`` names, made current, and the dtype to use there: see :func:`load`."""
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not {dtype}")
    if device is not None and not re.fullmatch(r"cpu|gpu(:[0-9]+)?", device):
        raise InputError(f"there is no device {device!r}: devices are cpu, gpu, gpu:<n>")
    own = backend(framework)
    place = own.use_device(device)
    return place, own.choose_dtype(dtype, place)


def backend(framework: str) -> Backend:
    """The module of a framework, imported.

    Raises:
        InputError: there is no such framework, or it is not installed.
    """
    if framework not in FRAMEWORKS:
        raise InputError(f"framework must be {' or '.join(FRAMEWORKS)}, not {framework}")
    for package in FRAMEWORKS[framework]:
        if find_spec(package) is None:
            raise InputError(
                f"framework {framework} needs the package {package}, which {sys.executable} lacks; "
                f"bash scripts/setup.sh {SETUP[framework]}"
            )
    environment.configure()
    return import_module(f"kvevict.backends.{FRAMEWORKS[framework][0]}")


def of_model(model: Any) -> Backend | None:
    """The backend of a model made by PaddleNLP or transformers; None for any other object."""
    for framework, (_, library) in FRAMEWORKS.items():
        if by_class(type(model), library):
            return backend(framework)
    return None


def versions(framework: str) -> dict[str, str]:
    """Versions that a run's record needs so that it can be repeated."""
    from kvevict import __version__

    found = {"python": platform.python_version(), "kvevict": __version__}
    for package, names in {**DISTRIBUTIONS[framework], "numpy": ("numpy",)}.items():
        for name in names:
            with suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(name)
    return found
