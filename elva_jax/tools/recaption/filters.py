"""Filters for answers that are no captions: empty, cut off, refused, or repeating themselves."""

from __future__ import annotations

import re
from collections import Counter

from elva_jax.utils.chat_client import Reply

MIN_WORDS = 8
LOOP = 4  # occurrences of a phrase in a row that count as repetition
PHRASE = 20  # most words of such a phrase
SAME_SENTENCES = 3  # occurrences of a sentence (four words or more) that count as repetition

# A refusal speaks about the model at the beginning of the answer; "a man who cannot reach" later
# in a caption is no refusal.
_UNABLE = (
    r"(?:sorry|unable|not able|cannot|can['’]t|can not|won['’]t|not comfortable"
    r"|don['’]t have the ability)"
)
_HEDGE = r"(?:(?:really|very|truly|so|currently|afraid(?: that)? i) )?"
_REFUSAL = re.compile(
    rf"\bi(?:['’]?m| am)? {_HEDGE}(?:apologi[sz]e|{_UNABLE})\b"
    r"|^(?:sorry|unfortunately,? i)\b"
    r"|\bas an ai\b"
    r"|\b(?:against|violates?)\b[^.]{0,40}\b(?:policy|policies|guidelines)\b"
    r"|\bno (?:image|video|picture) (?:was |is |has been )?(?:provided|attached|given)\b",
    re.IGNORECASE,
)


def reason(reply: Reply) -> str | None:
    """Why a reply is rejected: "truncated", "empty", "refusal" or "repetition"; None: accepted."""
    text = reply.text.strip()
    if reply.finish == "content_filter" or _REFUSAL.search(text[:200]):
        return "refusal"
    if repeats(text):  # before "truncated", because a loop runs into the limit of tokens
        return "repetition"
    if reply.finish == "length":
        return "truncated"
    return "empty" if len(text.split()) < MIN_WORDS else None


def repeats(text: str) -> bool:
    """Whether a phrase of up to 20 words occurs four times in a row, or a sentence three times."""
    sentences = (
        re.sub(r"\W+", " ", sentence).strip().lower() for sentence in re.split(r"[.!?\n]+", text)
    )
    counts = Counter(sentence for sentence in sentences if len(sentence.split()) >= 4)
    if counts and max(counts.values()) >= SAME_SENTENCES:
        return True
    words = re.findall(r"\w+", text.lower())
    for length in range(1, PHRASE + 1):
        run = 0  # consecutive words equal to the word `length` places before
        for before, after in zip(words, words[length:], strict=False):
            run = run + 1 if before == after else 0
            if run == length * (LOOP - 1):
                return True
    return False
