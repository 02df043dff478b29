"""Options, right options and references, under the names that records in the field have.

options    a list in `options`, `candidates` or `choices`, a dict of letters there, or fields
           such as option_0 …, a0 …, choice_a …, A …
answer     a letter, the text of an option, or an index from 0; `answer_index` and others are
           always indices
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from elva_jax.data.conversation import LETTERS
from elva_jax.errors import RecordError
from elva_jax.evaluation import answers
from elva_jax.evaluation.benchmarks.parsing import check_options, option_line, strip_letters
from elva_jax.evaluation.benchmarks.tables import Record, as_integer
from elva_jax.utils.numbers import shown

LISTS = ("options", "candidates", "choices", "option")
INDICES = ("answer_index", "answer_idx", "answer_id", "correct_index", "correct_idx")
ANSWERS = (
    *("answer", "A", "correct_answer", "correct_choice", "gt", "ground_truth", "label"),
    *("reference", "solution", "gt_answer", "correct"),
)
REFERENCES = ("references", "answers", "gt_answers")
_SERIES = (  # names of fields with one option each: from 0, from 1 and from a
    *(tuple(f"{name}{k}" for k in range(40)) for name in ("option_", "option", "option ", "a")),
    *(tuple(f"{name}{k}" for k in range(1, 40)) for name in ("option_", "option", "choice_")),
    *(
        tuple(f"{name}{letter}" for letter in string.ascii_lowercase)
        for name in ("choice_", "option_")
    ),
    tuple(LETTERS),
)


def options_of(record: Record) -> tuple[str, ...]:
    """The options of a record, without their letters; () if it has none.

    Raises:
      RecordError: they are no texts, fewer than 2, or more than letters can name.
    """
    value = record.get(*LISTS)
    if isinstance(value, Mapping):
        names = [str(name).strip().strip("().").upper() for name in value]
        if names != list(LETTERS[: len(names)]):
            listed = shown(", ".join(names))
            raise RecordError(record.key, f"its options are named {listed}, not A, B, … to Z")
        found = [Record(record.key, {name: text}).text(name) for name, text in value.items()]
    elif value is not None:
        found = list(record.texts(*LISTS))
    else:
        found = _series(record)
    return check_options(strip_letters(found), record.key) if found else ()


def _series(record: Record) -> list[str]:
    """The options of fields with one each; the longest series of names without a gap."""
    best: list[str] = []
    for names in _SERIES:
        found = []
        for name in names:
            if record.get(name) is None or record.get(name) == "":
                break
            found.append(name)
        if len(found) > max(len(best), 1):
            best = found
    return [record.text(name) for name in best]


def right_option(
    record: Record, options: Sequence[str], said: str = "", *, strict: bool = True
) -> int | None:
    """The index of a record's right option; None if the record does not say it.

    Args:
      record: the record.
      options: its options.
      said: the answer of its conversation; "": it has none.
      strict: refuse an answer that is no option, instead of returning None.

    Raises:
      RecordError: the answer is no option, or two of them.
    """
    if (index := record.get(*INDICES)) is not None:
        return _checked(as_integer(index, record.key, "answer_index"), options, record.key)
    value = said or record.get(
        *(name for name in ANSWERS if name != "A" or "B" not in record.fields)
    )
    if value is None or value == "":
        return None
    found = _meanings(value, options)
    if len(found) == 1:
        return found.pop()
    if not found and not strict:
        return None
    if not found:
        raise RecordError(
            record.key,
            f"its answer {shown(value)} is neither the letter, the text nor the index of one of its"
            f" {len(options)} options",
        )
    listed = " or ".join(LETTERS[index] for index in sorted(found))
    raise RecordError(
        record.key, f"its answer {shown(value)} may be {listed}; give its index as answer_index"
    )


def _meanings(value: object, options: Sequence[str]) -> set[int]:
    """The options that an answer may be: by its text, its letter, or its index from 0.

    A text of digits or a small letter that is exactly an option is that option, as in MVBench.
    """
    text = str(value).strip()
    exact = [k for k, option in enumerate(options) if option.strip() == text]
    if len(exact) == 1 and isinstance(value, str) and (text.isdecimal() or text.islower()):
        return set(exact)
    found = set(exact[:1] if len(exact) == 1 else ())
    if not exact and (same := answers.option_index(text, options)) is not None:
        found.add(same)
    letter = text.strip("().: ").upper()
    if len(letter) == 1 and LETTERS.find(letter) in range(len(options)):
        found.add(LETTERS.index(letter))
    is_number = isinstance(value, (int, str)) and not isinstance(value, bool)
    if is_number and text.isdecimal() and len(text) <= 2 and int(text) < len(options):
        found.add(int(text))
    return found


def _checked(index: int, options: Sequence[str], key: str) -> int:
    if not 0 <= index < len(options):
        raise RecordError(
            key, f"its answer has the index {index}, and its {len(options)} options begin with 0"
        )
    return index


def references_of(record: Record) -> tuple[str, ...]:
    """The right answers to an open question; () if the record has none.

    Raises:
      RecordError: one is no text.
    """
    if isinstance(record.get(*REFERENCES), (list, tuple)):
        return tuple(dict.fromkeys(record.texts(*REFERENCES)))
    value = record.get(*REFERENCES, *ANSWERS)
    if value is None or value == "":
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(Record(record.key, {"answer": item}).text("answer") for item in value)
    return (Record(record.key, {"answer": value}).text("answer"),)


def listed_options(text: str) -> tuple[str, ...]:
    """The options that a question lists, each on a line with its letter; () if there are none."""
    best: list[str] = []
    run: list[str] = []
    for line in text.split("\n"):
        line = line.strip()
        if option_line(line) and _letter(line) == LETTERS[len(run) : len(run) + 1]:
            run.append(line)
        else:
            run = [line] if option_line(line) and _letter(line) == "A" else []
        best = run if len(run) >= len(best) else best
    return strip_letters(best) if len(best) > 1 else ()


def _letter(line: str) -> str:
    return line.strip("( ")[:1]
