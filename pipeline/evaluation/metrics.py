"""How one answer is scored against its reference. A new metric is a function and a line in METRICS."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces.

    As in SQuAD's evaluation script v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250), but articles stay where nothing
    else would be left: the answer "A" of a multiple choice is an answer.
    """
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split()) or " ".join(plain.split())


def exact_match(prediction: str, reference: str) -> float:
    """1 if the two texts are the same, apart from white space at the ends and the Unicode normal form; else 0.

    Stricter than SQuAD's, which forgives case and punctuation: a program that reads a label does not.
    """
    return float(_canonical(prediction) == _canonical(reference))


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of precision and recall over normalized words, 0 to 1.

    As in SQuAD's evaluation scripts; as in v2.0, an empty side scores 1 only against an empty side.
    """
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def _canonical(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "token_f1": token_f1}
"""By name: (prediction, reference) → 0 to 1. The names are fields of `contracts.specs.Scores`."""
