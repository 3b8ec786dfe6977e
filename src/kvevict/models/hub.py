"""Files of a model on a hub, through the downloaders and caches of PaddleNLP and Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from kvevict.errors import InputError
from kvevict.models.builtin import INSTRUCT
from kvevict.models.checkpoint import read_json
from kvevict.models.tokenizer import PADDLENLP_FILES
from kvevict.runtime import quiet

_OPTIONAL = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    *PADDLENLP_FILES,
)
Hub = Callable[[str, str], "str | None"]  # repo_id and file name to a path
_HUGGING_FACE = "https://huggingface.co"


def download(repo_id: str) -> Path:
    """Directory with the files of `repo_id`, from PaddleNLP's own hub or else Hugging Face's.

    Weights are taken as safetensors only. Files that an earlier run downloaded need no network.
    Raises `InputError` when neither hub has the model.
    """
    hubs = [_paddlenlp] if _hugging_face_is_down(repo_id) else [_paddlenlp, _hugging_face]
    for hub in hubs:
        directory = _snapshot(repo_id, hub)
        if directory is not None:
            return directory
    raise InputError(
        f"{repo_id} could not be had as safetensors from PaddleNLP's or Hugging Face's hub "
        f"(network, name or access); {INSTRUCT} is a model that needs no hub"
    )


def _snapshot(repo_id: str, hub: Hub) -> Path | None:
    config = _file(repo_id, "config.json", hub)
    if config is None:
        return None
    index = _file(repo_id, "model.safetensors.index.json", hub)
    weights = {"model.safetensors"}
    if index is not None:
        weights = set(read_json(index).get("weight_map", {}).values())
    if not all(_file(repo_id, name, hub) for name in sorted(weights)):
        return None
    for name in _OPTIONAL:
        _file(repo_id, name, hub)
    return config.parent


def _file(repo_id: str, name: str, hub: Hub) -> Path | None:
    try:
        found = hub(repo_id, name)
    except Exception:  # each hub's client raises its own kinds; all mean: not from here
        return None
    return None if found is None else Path(found)


def _paddlenlp(repo_id: str, name: str) -> str | None:
    with quiet():
        from paddlenlp.utils.download import resolve_file_path
    return resolve_file_path(repo_id, [name])


def _hugging_face(repo_id: str, name: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(repo_id, name)


def _hugging_face_is_down(repo_id: str) -> bool:
    # Its client tries each file for half a minute before it gives up.
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo_id, "config.json"), str):
        return False
    try:
        urlopen(Request(os.environ.get("HF_ENDPOINT", _HUGGING_FACE), method="HEAD"), timeout=5)
    except HTTPError:  # an answer all the same
        return False
    except OSError:
        return True
    return False
