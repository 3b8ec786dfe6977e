"""Files of a model on a hub, through the downloaders and caches of PaddleNLP and Hugging Face."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from kvevict.environment import quiet
from kvevict.errors import InputError
from kvevict.models.builtin import INSTRUCT
from kvevict.models.checkpoint import read_json
from kvevict.models.tokenizer import PADDLENLP_FILES
from kvevict.waiting import waiting

_TOKENIZERS = ("tokenizer.json", *PADDLENLP_FILES)
_OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    *_TOKENIZERS,
)
_HUGGING_FACE = "https://huggingface.co"
_CACHES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")  # each says where Hugging Face's cache is
_KNOCK_SECONDS = 5


@dataclass(frozen=True)
class _Repository:
    """A model on one hub.

    Attributes:
        url: of the hub; empty where it must not be asked.
        cached: the path of a file in the hub's cache, by its name; "" where the cache knows that
            there is no such file, None where it does not know.
        fetch: the path of a file, downloaded if need be; raises where it cannot be had. Takes the
            ``revision`` of a cached one, too.
    """

    url: str
    cached: Callable[[str], str | None]
    fetch: Callable[..., str]


def download(repo_id: str) -> Path:
    """Directory with the files of ``repo_id``, from PaddleNLP's own hub or else Hugging Face's.

    Weights are taken as safetensors only. What is whole in a cache needs no network, and a hub that
    does not answer is given up after some seconds.

    Raises:
        InputError: neither hub has the model; with the last one's reason.
    """
    makers = [_paddlenlp, _hugging_face] if find_spec("paddlenlp") else [_hugging_face]
    repositories = [make(repo_id) for make in makers]
    for repository in repositories:
        found = _at_hand(repository, repo_id)
        if found is not None:
            return found
    reason = ""
    for repository in repositories:
        try:
            _knock(repository.url)
            return _snapshot(repository.fetch)
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


def _at_hand(repository: _Repository, repo_id: str) -> Path | None:
    """The directory of a cache, if that has all that a model needs."""
    cached = repository.cached
    try:
        directory = _snapshot(lambda name: cached(name) or _missing(name))
    except FileNotFoundError:
        return None
    if not any(map(cached, _TOKENIZERS)):
        return None
    unknown = [name for name in _OPTIONAL if cached(name) is None]
    if unknown and repository.url:
        try:
            _knock(repository.url)
        except ConnectionError as error:
            print(f"note: {directory} may lack {', '.join(unknown)} of {repo_id}: {error}",
                  file=sys.stderr)  # fmt: skip
        else:
            for name in unknown:
                _optional(partial(repository.fetch, revision=directory.name), name)
    return directory


def _snapshot(file: Callable[[str], str]) -> Path:
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


def _optional(file: Callable[[str], str], name: str) -> Path | None:
    try:
        return Path(file(name))
    except Exception:  # as above; most repositories lack some of these
        return None


def _missing(name: str) -> str:
    raise FileNotFoundError(name)


def _paddlenlp(repo_id: str) -> _Repository:
    with quiet():
        from paddlenlp.utils.download import resolve_file_path
        from paddlenlp.utils.download.bos_download import ENDPOINT
        from paddlenlp.utils.env import MODEL_HOME

    def cached(name: str) -> str:
        file = Path(MODEL_HOME, repo_id, name)
        return str(file) if file.is_file() else ""  # all is taken at once, or nothing

    def fetch(name: str) -> str:
        return resolve_file_path(repo_id, [name]) or _missing(name)

    return _Repository(ENDPOINT, cached, fetch)


def _hugging_face(repo_id: str) -> _Repository:
    if not any(map(os.environ.get, _CACHES)) and not os.path.expanduser("~/").startswith("/"):
        raise InputError(f"there is no home directory to keep {repo_id} in: set HF_HOME")
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(repo_id, name)
        return found if isinstance(found, str) else None if found is None else ""

    url = "" if constants.HF_HUB_OFFLINE else os.environ.get("HF_ENDPOINT") or _HUGGING_FACE
    return _Repository(url, cached, partial(hf_hub_download, repo_id))


def _knock(url: str) -> None:
    """Find out soon that a host is down; the clients try each file for half a minute.

    Raises:
        ConnectionError: it does not answer, or must not be asked.
    """
    if not url:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    try:
        with waiting(url):
            urlopen(Request(url, method="HEAD"), timeout=_KNOCK_SECONDS).close()
    except HTTPError:  # an answer all the same
        pass
    except (OSError, ValueError) as error:  # ValueError: no URL
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"{url} does not answer: {reason}") from None
