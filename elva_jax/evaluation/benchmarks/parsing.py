"""From a written answer to an option, or to yes or no.

In this order:

    the letter alone          b, (B), **B**.
    exactly an option's text  a red car
    a letter, decided for     Answer: B) a red car; I think it is (A), but (C) is better
    an option's text within   He drives a red car, if that of no other option is there

Nothing is guessed: an answer that names no option, or several without a decision, is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from elva_jax.data.conversation import LETTERS
from elva_jax.errors import RecordError
from elva_jax.evaluation import answers
from elva_jax.evaluation.benchmarks import letters

_LABEL = re.compile(r"\s{0,8}(?:\(([A-Z])\)|([A-Z])[.):])\s{0,8}")
_LONGEST_LISTED = 100  # characters of an option that are compared with what follows its letter
_WORD = re.compile(r"\w+")
_YES, _NO = frozenset(("yes", "y", "yeah", "yep", "yup")), frozenset(("no", "n", "nope", "nah"))
_DENIALS = frozenset(
    ("not", answers.normalize("isn't"), "no", "never", "without", "neither", "nor")
)


def check_options(options: Sequence[str], key: str) -> tuple[str, ...]:
    """The options of a question, if letters can name them.

    Raises:
      RecordError: there are fewer than 2 or more than 26.
    """
    if len(options) > len(LETTERS):
        raise RecordError(
            key, f"has {len(options)} options, and letters for {len(LETTERS)}; remove some"
        )
    if len(options) < 2:
        raise RecordError(key, f"has {len(options)} option(s); a choice needs at least 2")
    return tuple(options)


def strip_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Options without their own letters, if every one has its: `A. red`, `(B) green`."""
    matches = [_LABEL.match(option) for option in options]
    for letter, match in zip(LETTERS, matches, strict=False):
        if not match or letter not in match.groups():
            return tuple(options)
    return tuple(
        option[match.end() :] if match else option
        for option, match in zip(options, matches, strict=True)
    )


def option_line(line: str) -> bool:
    """Whether a line begins with the letter of an option."""
    return bool(_LABEL.match(line))


def parse_choice(text: str, options: Sequence[str]) -> int | None:
    """The option that a written answer names.

    Args:
      text: the answer, of any length.
      options: texts of the options, without their letters; at most 26.

    Returns:
      The option's index; None: none, or several without a clear final choice.
    """
    text = answers.nfkc(text)
    tokens = letters.tokenize(text)
    if (alone := letters.lone_letter(tokens, len(options))) is not None:
        return alone
    if (exact := answers.option_index(text, options)) is not None:
        return exact
    found = letters.mentions(tokens, len(options))
    if all(mention.rejected for mention in found):
        return contained_option(text, options)
    mention = letters.decide(tokens, found)
    if mention is None:
        return None
    if not mention.chosen and _lists_options(text, tokens, found, options):
        return None
    if mention.marked or mention.chosen:
        labeled = answers.option_index(text[tokens[mention.at].end :], options)
        return mention.option if labeled in (None, mention.option) else None
    within = contained_option(text, options)
    if within in (None, mention.option):
        return mention.option
    # "Vitamin C" is the text of another option, not a letter; any other disagreement is no choice.
    words = _WORD.findall(options[within])
    return within if tokens[mention.at].text in words else None


def parse_yes_no(text: str) -> Literal["yes", "no"] | None:
    """Whether an answer begins with yes or no as a whole word; None: with neither, or with both."""
    words = [match[0].casefold() for match in _first_words(answers.nfkc(text))]
    if not words or words[0] not in _YES | _NO:
        return None
    if len(words) > 2 and words[1] in ("and", "or") and words[2] in _YES | _NO:
        return None
    return "yes" if words[0] in _YES else "no"


def contained_option(text: str, options: Sequence[str]) -> int | None:
    """The only option whose words are within an answer, and not denied there; None if not one.

    The text of an option that is a single letter is not searched for.
    """
    said = f" {answers.normalize(text)} "
    folded = [answers.normalize(option) for option in options]
    found = sorted(
        (k for k, name in enumerate(folded) if _is_searchable(name) and f" {name} " in said),
        key=lambda k: -len(folded[k]),
    )
    if not found:
        return None
    best = f" {folded[found[0]]} "
    before = said[: said.index(best)].rsplit(maxsplit=1)[-1:]
    if before and before[0] in _DENIALS:
        return None
    rest = said.replace(best, " | ")  # "red" within "red car" is not said apart from it
    others = [k for k in found[1:] if folded[k] == folded[found[0]] or f" {folded[k]} " in rest]
    return None if others else found[0]


def _lists_options(
    text: str,
    tokens: Sequence[letters.Token],
    found: Sequence[letters.Mention],
    options: Sequence[str],
) -> bool:
    """Whether an answer repeats several options, each after its letter."""
    listed = set()
    for mention in found:
        end = tokens[mention.at].end
        option = answers.normalize(options[mention.option][:_LONGEST_LISTED])
        rest = text[end : end + 2 * _LONGEST_LISTED]
        if (
            option
            and rest[:1] in (".", ")", ":")
            and answers.normalize(rest[1:]).startswith(option)
        ):
            listed.add(mention.option)
    return len(listed) > 1


def _is_searchable(name: str) -> bool:
    return len(name) > 1 or name.isdecimal()


def _first_words(text: str) -> list[re.Match[str]]:
    """At most three words at the beginning of a text."""
    found: list[re.Match[str]] = []
    for match in _WORD.finditer(text.replace("_", " ")):
        found.append(match)
        if len(found) == 3:
            break
    return found
