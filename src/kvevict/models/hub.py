"""Files of a model on a hub, through the downloaders and caches of PaddleNLP and Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from kvevict.environment import quiet
from kvevict.errors import InputError
from kvevict.models.builtin import INSTRUCT
from kvevict.models.checkpoint import read_json
from kvevict.models.tokenizer import PADDLENLP_FILES

_OPTIONAL = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    *PADDLENLP_FILES,
)
Files = Callable[[str], str]  # the path of a repository's file, by its name
_HUGGING_FACE = "https://huggingface.co"


def download(repo_id: str) -> Path:
    """Directory with the files of `repo_id`, from PaddleNLP's own hub or else Hugging Face's.

    Weights are taken as safetensors only. Files that an earlier run downloaded need no network.
    Raises `InputError` with the last hub's reason when neither has the model.
    """
    reason = ""
    for hub in (_paddlenlp, _hugging_face):
        try:
            return _snapshot(hub(repo_id))
        # Each hub's client raises its own kinds; all mean: not from here.
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
    remedy = f"{INSTRUCT} is a model that needs no hub"
    if reason.startswith("GatedRepoError"):
        remedy = f"accept its licence at {_HUGGING_FACE}/{repo_id} and set HF_TOKEN; {remedy}"
    raise InputError(
        f"{repo_id} could not be had as safetensors from PaddleNLP's or Hugging Face's hub "
        f"({reason}); {remedy}"
    )


def _snapshot(file: Files) -> Path:
    directory = Path(file("config.json")).parent
    index = _optional(file, "model.safetensors.index.json")
    weights = {"model.safetensors"}
    if index is not None:
        weights = set(read_json(index).get("weight_map", {}).values())
    for name in sorted(weights):
        file(name)
    for name in _OPTIONAL:
        _optional(file, name)
    return directory


def _optional(file: Files, name: str) -> Path | None:
    try:
        return Path(file(name))
    except Exception:  # as above; most repositories lack some of these
        return None


def _paddlenlp(repo_id: str) -> Files:
    with quiet():
        from paddlenlp.utils.download import resolve_file_path

    def file(name: str) -> str:
        found = resolve_file_path(repo_id, [name])
        if found is None:
            raise FileNotFoundError(name)
        return found

    return file


def _hugging_face(repo_id: str) -> Files:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repo_id, "config.json"), str):
        _knock(os.environ.get("HF_ENDPOINT", _HUGGING_FACE))
    return partial(hf_hub_download, repo_id)


def _knock(url: str) -> None:
    """Find out at once that a host is down; the client tries each file for half a minute."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=5)
    except HTTPError:  # an answer all the same
        pass
    except OSError as error:
        raise ConnectionError(f"{url} does not answer: {error}") from None
