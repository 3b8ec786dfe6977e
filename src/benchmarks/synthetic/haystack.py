"""The text that synthetic examples hide things in, and the words they hide.

Three haystacks. ``noise`` is the benchmark's repeated line. ``prose`` is Python's own
documentation, which every CPython carries as ``pydoc_data.topics``: real English, no download.
``essays`` are Paul Graham's, fetched once, as in RULER and most papers. Prose and words are divided
between a ``train`` and an ``eval`` split that share no sentence and no word; the noise line and the
essays are the same in both. The documentation, so the prose, differs a little between Python
versions.
"""

from __future__ import annotations

import re
import zlib
from functools import cache

SPLITS = ("train", "eval")
NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
STRAIGHT_QUOTES = str.maketrans("“”‘’", "\"\"''")
WORDS = {
    "adjective": """
        amber ancient brass bronze copper coral crimson crystal dusty emerald frozen gentle
        gilded golden granite hidden hollow indigo iron ivory jade lonely lunar marble mossy
        narrow northern old painted pale quiet ruby rusty sapphire scarlet silent silver
        southern stone sunken velvet violet wandering western whispering wild windy wooden
    """,
    "noun": """
        abbey anchor archive arrow bakery balloon barge basket beacon bell bridge cabin candle
        canyon carriage castle cellar chapel clock compass crown dagger desert dolphin drum
        eagle engine falcon fiddle forest fountain garden gate glacier hammer harbour hermit
        island kettle ladder lantern library lighthouse meadow mill mirror monastery observatory
        orchard owl palace parrot pavilion pillar quarry raven river saddle sailor ship statue
        telescope temple theatre tiger tower tunnel turtle valley vault village violin vineyard
        wagon whale windmill wolf workshop
    """,
    "place": """
        Aberdeen Antwerp Avignon Bergen Bilbao Bologna Bremen Cairo Calgary Cardiff Cordoba
        Dakar Dresden Dublin Durban Exeter Florence Geneva Ghent Granada Hanoi Havana Helsinki
        Jakarta Kyoto Lagos Leipzig Lima Lisbon Lyon Malaga Manila Nairobi Naples Nantes Odessa
        Oslo Ottawa Perth Porto Prague Quito Riga Salzburg Seville Sofia Tallinn Toledo Trieste
        Tunis Turin Utrecht Valencia Vienna Vilnius Warsaw York Zagreb Zurich
    """,
}


def belongs(text: str, split: str) -> bool:
    """Whether ``text`` is for ``split``: a fixed half of all texts, by checksum, is for each."""
    return zlib.crc32(text.encode()) // 16 % 2 == SPLITS.index(split)


@cache
def words(kind: str, split: str) -> tuple[str, ...]:
    """The adjectives, nouns or places of a split."""
    return tuple(word for word in WORDS[kind].split() if belongs(word, split))


@cache
def prose(split: str) -> tuple[str, ...]:
    """The sentences of a split in reading order, each with the space or blank line behind it.

    Documentation topics are divided between the splits, about 100 KB or 20K tokens for each; longer
    contexts go through them again. A sentence that stands in topics of both counts for the first of
    ``SPLITS`` only.
    """
    from pydoc_data.topics import topics

    taken: set[str] = set()
    for owner in SPLITS:
        kept: dict[str, str] = {}
        for name in sorted(topics):
            if belongs(name, owner):
                units = {unit.strip(): unit for unit in _sentences(topics[name])}
                kept.update((key, unit) for key, unit in units.items() if key not in taken)
        if owner == split:
            return tuple(kept.values())
        taken.update(kept)
    raise ValueError(f"unknown split {split!r}")


@cache
def essays() -> tuple[str, ...]:
    """The sentences of Paul Graham's essays, each with the space behind it."""
    from benchmarks.ruler import sources

    found = sources.essays()
    return tuple(f"{sentence} " for sentence in found.sentences(len(found.words)))


def _sentences(topic: str) -> list[str]:
    units = []
    for block in topic.split("\n\n"):
        # Grammar, interactive code, tables; headings, which are underlined.
        if re.search(r"::=|>>>|\+--|^\W{4,}$", block, re.MULTILINE):
            continue
        # In a definition list the term stands alone on the first line.
        block = re.sub(r"^\S.*\n(?=   )", "", block)
        text = re.sub(r"^([*+-]|\d+\.)\s+", "", block.strip())
        text = re.sub(r"\*(\w[^*]*)\*", r"\1", text)
        text = " ".join(text.translate(STRAIGHT_QUOTES).split())
        sentences = [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text) if _is_prose(s)]
        if sentences:
            units += [sentence + " " for sentence in sentences[:-1]] + [sentences[-1] + "\n\n"]
    return units


def _is_prose(sentence: str) -> bool:
    letters = sum(char.isalpha() or char == " " for char in sentence)
    return (
        25 <= len(sentence) <= 300
        and sentence[0].isupper()
        and sentence[-1] in ".!?"
        and sentence.isascii()
        and letters > 0.85 * len(sentence)
    )
