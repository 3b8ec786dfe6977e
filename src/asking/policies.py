"""What is kept of a document, from the words of a user, and in words."""

from __future__ import annotations

from kvevict import Document, InputError
from kvevict.methods import Policy, build

METHOD, KEEP_RATIO = "kvzip", 0.2  # where nobody says otherwise: docs/asking.md has the choice
MIB = 2**20


def policy(
    method: str,
    keep_ratio: str | None = None,
    budget: str | None = None,
    kv_dtype: str | None = None,
) -> Policy:
    """The policy of a method, however short the document is.

    Args:
        method: its name.
        keep_ratio, budget: the share or the entries of each head to keep; by default a fifth.
        kv_dtype: what is kept is quantised to it.

    Raises:
        InputError: no such method, or a size that it cannot have.
    """
    if method == "full":
        if (keep_ratio, budget) != (None, None):
            raise InputError("full keeps everything, and takes no share or budget")
        return build(method, kv_dtype=kv_dtype)
    if budget is not None:
        return build(method, budget=_number(int, "budget", budget), kv_dtype=kv_dtype)
    ratio = KEEP_RATIO if keep_ratio is None else _number(float, "keep_ratio", keep_ratio)
    return build(method, keep_ratio=ratio, min_eviction_seqlen=0, kv_dtype=kv_dtype)


def _number(kind: type, name: str, text: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number between 0 and 1"
        raise InputError(f"{name} must be {wanted}, not {text!r}") from None


def summary(document: Document) -> str:
    """How long a document is, and what its cache takes."""
    cache, method = document.prompt.session.cache, document.prompt.method
    share = cache.nbytes / document.full_bytes
    what = ", ".join(filter(None, (method["name"], method.get("kv_dtype"))))
    return (
        f"{len(document.prompt.ids):,} tokens; the cache takes {cache.nbytes / MIB:.1f} MiB of "
        f"{document.full_bytes / MIB:.1f} ({what}, {share:.1%})"
    )
