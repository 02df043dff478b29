"""What is wrong with an answer, if anything: nothing to say, cut off, a refusal, or the same again and again."""

from __future__ import annotations

import re
from collections import Counter

from elva_jax.tools.recaption.engine import Reply

MIN_WORDS = 8
LOOP = 4  # times that a phrase stands in a row
PHRASE = 20  # words of such a phrase at most
SAME_SENTENCES = 3  # times that a sentence of four words or more stands anywhere

# A refusal speaks about itself at the beginning; "a man who cannot reach" later in a caption is none.
_UNABLE = r"(?:sorry|unable|not able|cannot|can['’]t|can not|won['’]t|not comfortable|don['’]t have the ability)"
_REFUSAL = re.compile(
    rf"\bi(?:['’]?m| am)? (?:(?:really|very|truly|so|currently|afraid(?: that)? i) )?(?:apologi[sz]e|{_UNABLE})\b"
    r"|^(?:sorry|unfortunately,? i)\b|\bas an ai\b|\b(?:against|violates?)\b[^.]{0,40}\b(?:policy|policies|guidelines)\b"
    r"|\bno (?:image|video|picture) (?:was |is |has been )?(?:provided|attached|given)\b",
    re.IGNORECASE,
)


def reason(reply: Reply) -> str | None:
    """Why a reply is no caption: "truncated", "empty", "refusal", "repetition"; None where it is one."""
    text = reply.text.strip()
    if reply.finish == "content_filter" or _REFUSAL.search(text[:200]):
        return "refusal"
    if repeats(text):  # before "truncated": what loops runs into the limit
        return "repetition"
    if reply.finish == "length":
        return "truncated"
    return "empty" if len(text.split()) < MIN_WORDS else None


def repeats(text: str) -> bool:
    """Whether a phrase of up to 20 words stands four times in a row, or a sentence three times anywhere."""
    sentences = (
        re.sub(r"\W+", " ", sentence).strip().lower() for sentence in re.split(r"[.!?\n]+", text)
    )
    counts = Counter(sentence for sentence in sentences if len(sentence.split()) >= 4)
    if counts and max(counts.values()) >= SAME_SENTENCES:
        return True
    words = re.findall(r"\w+", text.lower())
    for length in range(1, PHRASE + 1):
        run = 0  # words that equal the one `length` before
        for before, after in zip(words, words[length:], strict=False):
            run = run + 1 if before == after else 0
            if run == length * (LOOP - 1):
                return True
    return False
