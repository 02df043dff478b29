"""Token ids of templates and of texts: only a template's control tokens are control tokens.

A template and the texts in it are read as one string as long as no text contains a special or
added token of the tokenizer. Otherwise, the control tokens come from the template alone, and
everything between two of them is read by a copy of the tokenizer that has no added tokens.
"""

from __future__ import annotations

import functools
import itertools
import json
import re

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from elva_jax.errors import DataError

# Characters of a token on average; in languages and code, it is 1 to 6. Tokenizing takes some
# 2 microseconds and 260 bytes per character, so text that cannot fit is refused before.
MOST_LETTERS = 16
LONGEST_CACHED = 4096  # characters; the cache has thousands of entries


def may_fit(tokens: int, *texts: str) -> bool:
    """Whether texts are short enough for so many tokens to be tokenized; see `MOST_LETTERS`."""
    return sum(map(len, texts)) <= MOST_LETTERS * tokens


def token_ids(tokenizer: PreTrainedTokenizerBase, *pieces: str) -> tuple[int, ...]:
    """Token ids of pieces that are a template and a text in turn, the template first.

    Cached if short, because headers and many questions occur again and again.

    Args:
      tokenizer: any tokenizer.
      *pieces: template, text, template, text ...; any of them may be empty.

    Raises:
      DataError: the tokenizer cannot read a text without its control tokens.
    """
    find = _token_ids if sum(map(len, pieces)) <= LONGEST_CACHED else _token_ids.__wrapped__
    return find(tokenizer, *pieces)


@functools.lru_cache(maxsize=16_384)
def _token_ids(tokenizer: PreTrainedTokenizerBase, *pieces: str) -> tuple[int, ...]:
    whole = "".join(pieces)
    ids = _encode(tokenizer, whole) if whole else ()
    added = added_ids(tokenizer)
    controls = [token for piece in pieces[::2] for token in _controls(tokenizer, piece)]
    if [token for token in ids if token in added] == controls:
        return ids
    words = _added_words(tokenizer, len(tokenizer))
    out: list[int] = []
    pending = ""  # what lies between two control tokens
    for number, piece in enumerate(pieces):
        # Every second part of a template is an added token.
        for k, part in enumerate(words.split(piece) if number % 2 == 0 else [piece]):
            if k % 2:
                out += (*plain_ids(tokenizer, pending), *_encode(tokenizer, part))
                pending = ""
            else:
                pending += part
    return (*out, *plain_ids(tokenizer, pending))


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a text without any special or added token.

    Raises:
      DataError: the tokenizer's own vocabulary contains one of them as a word.
    """
    if not text:
        return ()
    added = added_ids(tokenizer)
    if not added.intersection(ids := _encode(tokenizer, text)):
        return ids
    bare = _without_added(tokenizer)
    if bare is not None:
        ids = tuple(bare.encode(text, add_special_tokens=False).ids)
    else:
        words = _added_words(tokenizer, len(tokenizer))
        cuts = [0, *(found.start() + 1 for found in words.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
        ids = tuple(token for piece in pieces for token in _encode(tokenizer, piece))
    if left := added.intersection(ids):
        raise DataError(
            f"tokenizer {tokenizer.name_or_path}: cannot read"
            f" {tokenizer.convert_ids_to_tokens(min(left))!r} as text"
        )
    return ids


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()


@functools.lru_cache(maxsize=256)
def _controls(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[int, ...]:
    """Ids of the added tokens in a template."""
    added = added_ids(tokenizer)
    return tuple(token for token in _encode(tokenizer, template) if token in added)


@functools.lru_cache(maxsize=8)
def _added_words(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    """The added tokens, the longest first, as one group."""
    del size
    words = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, words))})" if words else "((?!))")


def added_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokenizer's special and other added tokens."""
    return _added(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=8)
def _added(tokenizer: PreTrainedTokenizerBase, size: int) -> frozenset[int]:
    """Ids of the added tokens, special or not; a tokenizer of another size is looked at again."""
    del size
    return frozenset(tokenizer.get_added_vocab().values())


@functools.lru_cache(maxsize=8)
def _without_added(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """A copy of a fast tokenizer without added tokens; None for one in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    state = json.loads(backend.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))
