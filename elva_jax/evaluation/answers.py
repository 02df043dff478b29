"""Comparing a written answer with the reference: exact match after normalization."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = frozenset(("a", "an", "the"))
_LABEL = re.compile(r"[(\[]?([A-Za-z])[)\].:]")  # of an option, before its text
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_SEPARATOR = re.compile(r"(?!(?<!\S)-\d)(?:(?<!\d)[^\w\s]|[^\w\s](?!\d)|_)")


def normalize(text: str) -> str:
    """Folds case, width, punctuation, spaces and articles: `" The red circle. "` -> `"red circle"`.

    A mark between two digits and a minus sign are kept (`1.5`, `10:30`, `-2`); an apostrophe inside
    a word is removed. An article is dropped only before another word, so that the answer `A`, a
    letter, stays `a`.
    """
    folded = nfkc(nfkc(text).casefold())
    words = _SEPARATOR.sub(" ", _APOSTROPHE.sub("", folded)).split()
    kept = [word for word in words[:-1] if word not in _ARTICLES]
    return " ".join(kept + words[-1:])


def nfkc(text: str) -> str:
    """NFKC in linear time: CPython sorts a run of combining marks by insertion."""
    if text.isascii():
        return text
    letters = "".join(unicodedata.normalize("NFKD", letter) for letter in text)
    runs = itertools.groupby(letters, key=lambda letter: unicodedata.combining(letter) > 0)
    ordered = (sorted(run, key=unicodedata.combining) if marks else run for marks, run in runs)
    return unicodedata.normalize("NFKC", "".join(itertools.chain.from_iterable(ordered)))


def exact_match(answer: str, reference: str) -> bool:
    """Whether two answers are equal once normalized; an empty answer matches nothing."""
    folded = normalize(answer)
    return bool(folded) and folded == normalize(reference)


def option_index(answer: str, options: Sequence[str]) -> int | None:
    """The option that equals a written answer; None if none or several do.

    Texts are compared as written, then normalized. The letter of the option may stand before its
    text ("A. red" and "B. green" are judged alike); the letter of another option is a mismatch.
    """
    said = answer.strip()
    same = [k for k, option in enumerate(options) if said and option.strip() == said]
    if len(same) == 1:
        return same[0]
    label = _LABEL.match(said)
    if label and (index := ord(label[1].upper()) - ord("A")) < len(options):
        labeled = _normalized_index(said[label.end() :], options)
        if labeled is not None:
            return labeled if labeled == index else None
    return _normalized_index(said, options)


def _normalized_index(answer: str, options: Sequence[str]) -> int | None:
    folded = normalize(answer)
    hits = [k for k, option in enumerate(options) if folded and normalize(option) == folded]
    return hits[0] if len(hits) == 1 else None
