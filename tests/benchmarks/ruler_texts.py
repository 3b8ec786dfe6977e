"""Small texts in the formats of those that RULER's examples are made of."""

from __future__ import annotations

import json
import random
from pathlib import Path

SYLLABLES = [c + v for c, v in zip("bcdfghlmnprstvwz", "aoiuaoioueaoiuae")]


def write_texts(folder: Path, seed: int = 7) -> Path:
    """Essays of 9,000 words, five articles and 40 questions with ten paragraphs, two with fewer."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choices(SYLLABLES, k=rng.randint(1, 4)))

    def sentence() -> str:
        words = [word() for _ in range(rng.randint(4, 16))]
        return " ".join([words[0].capitalize(), *words[1:]]) + rng.choice([".", ".", ".", "?", "!"])

    def paragraph() -> str:
        return " ".join(sentence() for _ in range(rng.randint(3, 8)))

    def asked(text: str, impossible: bool = False) -> dict:
        answers = [] if impossible else [{"text": " ".join(text.split()[:n])} for n in (2, 3)]
        return {"question": sentence(), "is_impossible": impossible, "answers": answers}

    essays = "\n\n".join(paragraph() for _ in range(180))
    articles = []
    for _ in range(5):
        texts = [paragraph() for _ in range(14)]
        paragraphs = [{"context": t, "qas": [asked(t), asked(t, impossible=True)]} for t in texts]
        articles.append({"paragraphs": paragraphs})
    questions = []
    for i in range(40):
        texts = [[sentence() for _ in range(4)] for _ in range(10 if i % 20 else 3)]
        context = [[word().capitalize(), text] for text in texts]
        questions.append({"question": sentence(), "answer": texts[0][1], "context": context})
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "PaulGrahamEssays": {"text": essays},
        "squad": {"data": articles},
        "hotpotqa": questions,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
