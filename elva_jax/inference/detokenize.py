"""Turns tokens into visible text while an answer grows."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to


def visible(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    stop: Sequence[str] = (),
    *,
    final: bool = True,
) -> tuple[str, bool]:
    """The text of an answer so far, and whether a stop string ended it.

    Args:
      tokenizer: decodes the tokens.
      tokens: of the answer.
      stop: the answer ends before the first of these strings.
      final: False while more tokens may come. Then the end of the text that they might still change
        is held back: half a character, what may become a stop string, and white space, with which
        an answer does not end.
    """
    text = str(tokenizer.decode(list(tokens), skip_special_tokens=True)).lstrip()
    found = [place for place in map(text.find, stop) if place >= 0]
    if found:
        return text[: min(found)].rstrip(), True
    if not final:
        text = text.rstrip(UNFINISHED)
        text = text[: len(text) - max((_overlap(text, end) for end in stop), default=0)]
    return text.rstrip(), False


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def tokens_before(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop: Sequence[str]
) -> int:
    """The number of tokens up to the one that completes a stop string."""
    counts = range(1, len(tokens) + 1)
    return next((n for n in counts if visible(tokenizer, tokens[:n], stop)[1]), len(tokens))
