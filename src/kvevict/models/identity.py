"""What a model is, told from its files without reading all of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kvevict.models.builtin import BUILTINS

SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".gguf")
WHOLE = 64 << 20  # bytes up to which a file is read whole
HEAD = 16 << 20  # of a larger one, with its header: GGUF's holds a whole vocabulary
SAMPLES, SAMPLE = 1024, 4096  # evenly over the rest: how many, and bytes of each


def model_identity(model_path: str, source: str) -> dict[str, str]:
    """The size and a digest of each file of a model, by name.

    Files of more than 64 MiB are sampled: other weights give another identity, but a change of a
    few numbers may go unseen. A built-in model is what its name says, wherever it was made.

    Args:
        model_path: as a user names the model.
        source: where its checkpoint was read from, a directory or a file.
    """
    path = Path(source)
    if model_path in BUILTINS:
        return {path.name: "built-in"}
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {
        file.name: f"{file.stat().st_size}:{_digest(file)}"
        for file in files
        if file.suffix in SUFFIXES and file.is_file()
    }


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            digest.update(file.read())
        else:
            digest.update(file.read(HEAD))
            for sample in range(SAMPLES):
                file.seek(HEAD + (size - HEAD - SAMPLE) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]
