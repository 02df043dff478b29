"""Comparing a written answer with the reference: exact match after a careful normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = frozenset(("a", "an", "the"))
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_SEPARATOR = re.compile(r"(?!(?<!\S)-\d)(?:(?<!\d)[^\w\s]|[^\w\s](?!\d)|_)")


def normalise(text: str) -> str:
    """Folds case, width, punctuation, spaces and articles: `" The red circle. "` -> `"red circle"`.

    A mark between two digits and a minus sign stay (`1.5`, `10:30`, `-2`), an apostrophe inside a word vanishes.
    An article is dropped only in front of another word, so the answer `A` stays `a`: a letter is never mistaken for an article.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = _SEPARATOR.sub(" ", _APOSTROPHE.sub("", folded)).split()
    return " ".join(
        word for i, word in enumerate(words) if word not in _ARTICLES or i == len(words) - 1
    )


def exact_match(answer: str, reference: str) -> bool:
    """Whether two answers are the same once normalised; an empty answer matches nothing."""
    folded = normalise(answer)
    return bool(folded) and folded == normalise(reference)


def option_index(answer: str, options: Sequence[str]) -> int | None:
    """The option that a written answer equals once normalised; None where it equals none, or several."""
    folded = normalise(answer)
    hits = [i for i, option in enumerate(options) if folded and normalise(option) == folded]
    return hits[0] if len(hits) == 1 else None
