"""Letters of options within a written answer, and which of them the answer decides for.

    "I think it is (A), but (C) is better"      tokens   I think it is ( A ) , but ( C ) is better
                                                letters              A           C
                                                decides for                      C: "is better"

Every search looks at a bounded number of neighbors, so the time is linear in the answer's length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from elva_jax.data.conversation import LETTERS

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts without spaces: a letter may touch them
_TOKEN = re.compile(
    rf"[a-z](?:\.[a-z])+\b\.?|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*|[^\s]"  # "e.g." is one token
)
_MARKUP = re.compile(r"[*_`\"“”$]+")
_OPENING, _CLOSING = frozenset("([{<"), frozenset(")]}>")
_LINKS = frozenset(("is", "was", "be", ":", "=", "-", "–", "—"))
_NOUNS = frozenset(("option", "choice", "letter"))
_DECISIONS = frozenset(
    ("answer", "boxed", "choose", "pick", "select", "so", "therefore", "thus", "hence", "finally")
)
_FAVORABLE = frozenset(("correct", "right", "best", "better", "answer", "true", "likely", "final"))
_NEGATIONS = frozenset(
    ("not", "isn't", "cannot", "can't", "never", "neither", "nor", "except", "than")
)
_FILLERS = frozenset(
    (
        *("the", "most", "more", "would", "should", "must", "it", "it's", "that", "a", "an"),
        *("clearly", "definitely", "probably", "therefore", "text", "\\", ",", "'"),
        *_OPENING,
        *_CLOSING,
    )
)
_VERBS = frozenset(("is", "was", "seems", "looks", "appears", "would", "must", "should"))
_UNFAVORABLE = frozenset(("wrong", "incorrect", "false", "worse", *_NEGATIONS))
_REFUSALS = frozenset(("isn't", "cannot", "can't", "doesn't", "wasn't"))
_REASONS = frozenset(("because", "since"))
_CONJUNCTIONS = frozenset(("and", "or", "nor"))
_JOINING = frozenset((*_CONJUNCTIONS, ",", "/", "&", "+", *_NOUNS, *_OPENING, *_CLOSING))
_TURNS = frozenset(
    (
        *("but", "however", "actually", "wait", "no", "instead", "rather", "so", "therefore"),
        *("thus", "hence", "finally", "final", "better", "best"),
    )
)
_REACH = 10  # tokens looked at on either side of a letter


class Token(NamedTuple):
    """A word or mark of an answer.

    Attributes:
      text: as written.
      folded: in lower case, with a straight apostrophe.
      end: the character after it.
      is_word: whether it is a word or a number.
      begins_line: whether only space precedes it on its line.
    """

    text: str
    folded: str
    end: int
    is_word: bool
    begins_line: bool


@dataclass(frozen=True)
class Mention:
    """A letter of an option within an answer.

    Attributes:
      option: index of the option.
      at: index of the token.
      marked: it is in brackets, or labels a line: `(B)`, `B. red`.
      chosen: the answer decides for it: "the answer is B", "B is better".
      rejected: the answer decides against it: "not B", "B is wrong".
    """

    option: int
    at: int
    marked: bool
    chosen: bool
    rejected: bool


def tokenize(text: str) -> list[Token]:
    """The words and marks of a text, without those that only set type, such as `**`."""
    plain = _MARKUP.sub(lambda match: " " * len(match[0]), text)
    tokens: list[Token] = []
    end = 0
    for match in _TOKEN.finditer(plain):
        begins = not tokens or "\n" in plain[end : match.start()]
        word = match[0]
        folded = word.lower().replace("’", "'")
        tokens.append(Token(word, folded, match.end(), word[0].isalnum(), begins))
        end = match.end()
    return tokens


def lone_letter(tokens: Sequence[Token], count: int) -> int | None:
    """The option of an answer that has one letter and else only marks: `b`, `(B)`, `**B**.`."""
    words = [token.text for token in tokens if token.is_word]
    return _option(words[0], count) if len(words) == 1 else None


def mentions(tokens: Sequence[Token], count: int) -> list[Mention]:
    """The letters of the first `count` options, in order, without articles and pronouns.

    Small letters count if there are no capitals, or where brackets or "option" mark them.
    """
    found: list[Mention] = []
    small: list[Mention] = []
    for at, token in enumerate(tokens):
        option = _option(token.text, count)
        if option is None:
            continue
        named, chosen, rejected = _before(tokens, at)
        favored, refused = _after(tokens, at)
        marked = _is_marked(tokens, at)
        cued = named or chosen or rejected
        if not marked and not _is_letter(tokens, at, cued=cued):
            continue
        mention = Mention(option, at, marked, chosen or favored, rejected or refused)
        bare = token.text.islower() and not marked and not cued
        (small if bare else found).append(mention)
    return _inherit(tokens, found or small)


def decide(tokens: Sequence[Token], found: Sequence[Mention]) -> Mention | None:
    """The letter that an answer decides for; None if it has none, or several without a decision."""
    left = [mention for mention in found if not mention.rejected]
    chosen = [mention for mention in left if mention.chosen]
    if chosen:
        return _last_chosen(tokens, left, chosen)
    if left and (leading := _leading(tokens, left)):
        return leading
    return left[-1] if len({mention.option for mention in left}) == 1 else None


def _option(word: str, count: int) -> int | None:
    index = LETTERS.find(word.upper()) if len(word) == 1 else -1
    return index if 0 <= index < count else None


def _text(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].folded if 0 <= at < len(tokens) else ""


def _is_marked(tokens: Sequence[Token], at: int) -> bool:
    before, after = _text(tokens, at - 1), _text(tokens, at + 1)
    if after in _CLOSING and after != ">":
        return True
    word_follows = at + 1 < len(tokens) and tokens[at + 1].is_word
    if before in _OPENING and before != "<" and not word_follows:
        return True
    return tokens[at].begins_line and after in (".", ":")


def _is_letter(tokens: Sequence[Token], at: int, *, cued: bool) -> bool:
    """Whether an unmarked letter is neither the article "a" nor the pronoun "I"."""
    text, after = tokens[at].text, _text(tokens, at + 1)
    if text not in "AaIi":
        return True
    if text == "A" and _text(tokens, at - 1) in _NOUNS:
        return True
    is_end_tag = after == "<" and _text(tokens, at + 2) == "/"
    ends = not after or is_end_tag or (after not in _OPENING and not tokens[at + 1].is_word)
    ends = ends or (at + 1 < len(tokens) and tokens[at + 1].begins_line)
    if cued and (ends or after in _REASONS):
        return True
    if text == "A":
        return ends or after in (_VERBS | _REFUSALS | _REASONS | _CONJUNCTIONS | {"but"})
    return text == "I" and after in ("is", "isn't")


def _before(tokens: Sequence[Token], at: int) -> tuple[bool, bool, bool]:
    """Whether the words before a letter name it as an option, decide for it, or against it."""
    named = linked = False
    for index in range(at - 1, max(-1, at - 1 - _REACH), -1):
        word = tokens[index].folded
        if word in _NEGATIONS:
            return named, False, True
        if word in _DECISIONS:
            return named, True, False
        if word in _NOUNS:
            if linked:
                return named, True, False
            named = True
        elif word in _LINKS:
            linked = True
        elif word not in _FILLERS:
            return named, named and word in _FAVORABLE, False
    return named, False, False


def _after(tokens: Sequence[Token], at: int) -> tuple[bool, bool]:
    """Whether the words after a letter decide for it, or against it."""
    is_said = False
    for index in range(at + 1, min(len(tokens), at + 1 + _REACH)):
        word = tokens[index].folded
        if word in _REFUSALS and not is_said:
            return False, True
        if word in _VERBS:
            is_said = True
        elif is_said and word in _FAVORABLE:
            return True, False
        elif is_said and word in _UNFAVORABLE:
            return False, True
        elif word not in _CLOSING and not (is_said and word in _FILLERS):
            break
    return False, False


def _between(tokens: Sequence[Token], first: Mention, second: Mention) -> list[str]:
    return [token.folded for token in tokens[first.at + 1 : second.at]]


def _joined(tokens: Sequence[Token], first: Mention, second: Mention) -> bool:
    """Whether two letters belong together, as in "A and B" or "A, B"."""
    if second.at - first.at > _REACH:
        return False
    words = _between(tokens, first, second)
    joining = all(word in _JOINING for word in words)
    return joining and any(word in _JOINING - _OPENING - _CLOSING - _NOUNS for word in words)


def _inherit(tokens: Sequence[Token], found: Sequence[Mention]) -> list[Mention]:
    """Letters with what is said of their neighbors: "not A or B" rejects both."""
    kept: list[Mention] = []
    for mention in found:
        previous = kept[-1] if kept else None
        if previous and previous.rejected and not mention.rejected:
            words = _between(tokens, previous, mention) if mention.at - previous.at < _REACH else []
            if set(words) & _CONJUNCTIONS and _joined(tokens, previous, mention):
                mention = Mention(
                    mention.option, mention.at, mention.marked, mention.chosen, rejected=True
                )
        kept.append(mention)
    return kept


def _last_chosen(
    tokens: Sequence[Token], left: Sequence[Mention], chosen: Sequence[Mention]
) -> Mention | None:
    """The last letter that is decided for; None if it is one of several."""
    last = chosen[-1]
    place = left.index(last)
    for other in (*left[max(0, place - 1) : place], *left[place + 1 : place + 2]):
        first, second = (other, last) if other.at < last.at else (last, other)
        if other.option != last.option and _joined(tokens, first, second):
            return None
    others = [mention for mention in chosen if mention.option != last.option]
    if not others:
        return last
    after = {token.folded for token in tokens[others[-1].at + 1 : last.at + 1 + _REACH]}
    return last if after & _TURNS else None


def _leading(tokens: Sequence[Token], left: Sequence[Mention]) -> Mention | None:
    """The letter that an answer begins with as a label, or before its reason or a new line."""
    first = left[0]
    if any(token.folded not in _OPENING for token in tokens[: first.at]):
        return None
    following = [
        token
        for token in tokens[first.at + 1 : first.at + 4]
        if token.folded not in {*_CLOSING, ",", ".", ":"}
    ]
    if following and following[0].folded in _CONJUNCTIONS:
        return None
    if any(mention.marked and mention.option != first.option for mention in left):
        return None
    reason = following and (following[0].folded in _REASONS or following[0].begins_line)
    return first if first.marked or reason else None
