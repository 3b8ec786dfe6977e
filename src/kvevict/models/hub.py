"""Files of a model on a hub, through PaddleNLP's downloader and cache."""

from __future__ import annotations

from pathlib import Path

from kvevict.errors import InputError
from kvevict.models.builtin import INSTRUCT
from kvevict.models.checkpoint import read_json
from kvevict.runtime import quiet

_OPTIONAL = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
)


def download(repo_id: str) -> Path:
    """Directory with the files of `repo_id`, from PaddleNLP's own hub or else Hugging Face's.

    Weights are taken as safetensors only. Raises `InputError` when no hub answers or has them.
    """
    config = _file(repo_id, "config.json")
    if config is None:
        raise InputError(
            f"{repo_id} could not be reached on PaddleNLP's or Hugging Face's hub; "
            f"{INSTRUCT} is a model that needs no hub"
        )
    index = _file(repo_id, "model.safetensors.index.json")
    if index is not None:
        weights = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        weights = ["model.safetensors"]
    for name in weights:
        if _file(repo_id, name) is None:
            raise InputError(f"{repo_id}: the hub gave no {name}; pickled weights are never loaded")
    for name in _OPTIONAL:
        _file(repo_id, name)
    return config.parent


def _file(repo_id: str, name: str) -> Path | None:
    with quiet():
        from paddlenlp.utils.download import resolve_file_path

        for hub in ({}, {"from_hf_hub": True}):
            try:
                found = resolve_file_path(repo_id, [name], **hub)
            except Exception:  # each hub's client raises its own kinds; all mean: not from here
                continue
            if found is not None:
                return Path(found)
    return None
