"""How ∞Bench grades one prediction (Zhang et al., ACL 2024, arXiv 2402.13718, section 3).

Every metric is a function ``(prediction, label) -> float`` in [0, 1]. The rules, quirks included,
are those of the benchmark's own scorer: a score compares with published ones only if they are kept.
A label that a metric cannot read raises ``InputError``.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Union

from kvevict.errors import InputError

Label = Union[str, int, float, list]

# The benchmark's own list: it has no 《.
CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗"
    "〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
RETRIEVAL_SEPARATORS = ("\n", ":", '"', "'", ".", ",", "?", "!", "{", "}")
CHOICE_SEPARATORS = ("\n", '"', "'", ".", ",", "?", "!", "{", "}")
CODE_RUN_SEPARATORS = ("\n", ".", "`", "'", '"', ":")
CODE_DEBUG_SEPARATORS = ("\n", "`", "'", '"', "-", "*", "Option", "option")
# The order matters: only the first phrase that occurs is looked behind.
CHOICE_LEADS = ("answer is:", "answer:", "answer is", "option is")
CODE_DEBUG_LEADS = ("answer is:", "is:", "answer:", "correct option is:")


# --- retrieval -----------------------------------------------------------------------------------


def first_integer(prediction: str, label: Label) -> float:
    """Retrieve.PassKey, Retrieve.Number: the first run of ASCII digits is the label, as text."""
    found = re.search("[0-9]+", prediction)
    return float(found is not None and found.group() == str(_first(label)))


def contains_word(prediction: str, label: Label) -> float:
    """Retrieve.KV: the label is one of the prediction's words."""
    return float(_first(label) in _blank(prediction, RETRIEVAL_SEPARATORS).split())


def contains_name(prediction: str, label: Label) -> float:
    """En.Dia: the label's first name is one of the upper-cased words."""
    words = _blank(prediction, RETRIEVAL_SEPARATORS).split()
    return float(_first(label) in [word.upper() for word in words])


def contains_tokens(prediction: str, label: Label) -> float:
    """Our own needle tasks: the label's words and numbers occur in a row, in any letter case."""
    words, wanted = (re.findall(r"\w+", text.lower()) for text in (prediction, str(_first(label))))
    starts = range(len(words) - len(wanted) + 1)
    return float(any(words[i : i + len(wanted)] == wanted for i in starts))


# --- books ---------------------------------------------------------------------------------------


def token_f1(prediction: str, label: Label) -> float:
    """En.QA: the best F1 of normalised words over the labels."""
    return max(f1(english_words(prediction), english_words(text)) for text in _texts(label))


def character_f1(prediction: str, label: Label) -> float:
    """Zh.QA: the best F1 of characters over the labels."""
    return max(f1(_chinese_chars(prediction), _chinese_chars(text)) for text in _texts(label))


def rouge_lsum(prediction: str, label: Label) -> float:
    """En.Sum: the best ROUGE-Lsum F-measure over the labels, without stemming."""
    scorer = _rouge_scorer()
    return max(scorer.score(text, prediction)["rougeLsum"].fmeasure for text in _texts(label))


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # late: only summaries need its half second

    return RougeScorer(["rougeLsum"], use_stemmer=False)


def choice(prediction: str, label: Label) -> float:
    """En.MC: the label is ``[text of the right option, its letter]``."""
    members = _option_label(label)
    prediction = prediction.strip()
    if not prediction:
        return 0.0
    if prediction[0] in "ABCD":
        return float(prediction[0] in members)
    if prediction in members:
        return 1.0
    prediction = _squeeze(_blank(prediction, CHOICE_SEPARATORS))
    behind = _after_lead(prediction, CHOICE_LEADS)
    if behind is not None:
        return float(bool(behind) and behind.startswith(tuple(members)))
    for word in prediction.split():
        if word in "ABCD":
            return float(word in members)
    return 0.0


# --- code ----------------------------------------------------------------------------------------


def debug_choice(prediction: str, label: Label) -> float:
    """Code.Debug: the label is ``[name of the broken function, its letter]``."""
    name, letter = _option_label(label)
    prediction = prediction.strip()
    if prediction.startswith((letter + ".", letter + ":")):
        return 1.0
    prediction = _squeeze(_blank(prediction, CODE_DEBUG_SEPARATORS))
    behind = _after_lead(prediction, CODE_DEBUG_LEADS)
    return float(bool(behind) and behind.startswith((letter, name)))


def last_integer(prediction: str, label: Label) -> float:
    """Code.Run: the last word, read as an integer, is the label."""
    wanted = str(_first(label))
    if not re.fullmatch("-?[0-9]+", wanted):
        raise InputError(f"the label {wanted!r} is not an integer")
    words = _blank(prediction, CODE_RUN_SEPARATORS).split()
    try:
        return float(bool(words) and int(words[-1]) == int(wanted))
    except ValueError:
        return 0.0


# --- mathematics ---------------------------------------------------------------------------------


def first_number(prediction: str, label: Label) -> float:
    """Math.Find: the first number is the label; cut to an integer first if the label is one."""
    wanted = _number(_first(label))
    found = re.search(r"\d+\.\d+|\d+", prediction)
    if found is None:
        return 0.0
    if isinstance(wanted, float):
        return float(float(found.group()) == wanted)
    return float(_integer(found.group().split(".")[0]) == wanted)


def leading_values(prediction: str, label: Label) -> float:
    """Math.Calc: the share of the label's values that are right before the first wrong one."""
    label = _flat(label)
    if not isinstance(label, list) or not label:
        raise InputError("the label is not a list of numbers")
    values = [_number(value) for value in label]
    right = 0
    for digits, wanted in zip(re.findall("[0-9]+", prediction), values):
        if _integer(digits) != wanted:
            break
        right += 1
    return right / len(label)


def without_first_number(prediction: str) -> str:
    """GPT-4 repeats the expression's first number; the benchmark drops it before Math.Calc."""
    return re.sub("^[^0-9]*[0-9]+", "", prediction)


# --- what they share -----------------------------------------------------------------------------


def _flat(label: Label) -> Label:
    """Some published labels are nested one list deeper."""
    while isinstance(label, list) and len(label) == 1 and isinstance(label[0], list):
        label = label[0]
    return label


def _number(value: Any) -> int | float:
    """A number, or a text that is one."""
    for kind in (int, float):
        with suppress(ValueError):
            if isinstance(value, str) or type(value) is kind:
                return kind(value)
    raise InputError(f"the label {value!r} is not a number")


def _first(label: Label) -> str | int | float:
    label = _flat(label)
    first = label[0] if isinstance(label, list) and label else label
    if type(first) not in (str, int, float):
        raise InputError(f"the label {first!r} is neither a text nor a number")
    return first


def _texts(label: Label) -> list[str]:
    label = _flat(label)
    texts = label if isinstance(label, list) else [label]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("the label is neither a text nor a list of texts")
    return texts


def _option_label(label: Label) -> list[str]:
    label = _flat(label)
    if not isinstance(label, list) or len(label) != 2 or not all(isinstance(x, str) for x in label):
        raise InputError("the label is not a pair of an option's text and its letter")
    return label


def _integer(digits: str) -> int | None:
    # Python refuses to convert longer runs; no label is that long.
    return int(digits) if len(digits) < 4000 else None


def _blank(text: str, separators: Sequence[str]) -> str:
    for separator in separators:
        text = text.replace(separator, " ")
    return text


def _squeeze(text: str) -> str:
    return re.sub(" {2,}", " ", text)


def _after_lead(text: str, leads: Sequence[str]) -> str | None:
    """What stands one character behind the first lead that occurs; None where none does."""
    for lead in leads:
        _, found, behind = text.partition(lead)
        if found:
            return behind[1:]
    return None


def english_words(text: str) -> list[str]:
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _chinese_chars(text: str) -> list[str]:
    dropped = set(string.punctuation + CHINESE_PUNCTUATION)
    return [char for char in "".join(text.lower().split()) if char not in dropped]


def f1(prediction: list[str], label: list[str]) -> float:
    overlap = sum((Counter(prediction) & Counter(label)).values())
    if not overlap:
        return 0.0
    precision, recall = overlap / len(prediction), overlap / len(label)
    return 2 * precision * recall / (precision + recall)
