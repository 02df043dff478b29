"""Multiple choice: how questions are written, and how answers are graded and scored.

    accuracy = maximum · right / all        unparsed answers are in the denominator

Questions without a public answer, or whose media could not be read (`base.scored`), are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elva_jax.data.conversation import LETTERS, choice_prompt
from elva_jax.data.example import Media
from elva_jax.errors import RecordError
from elva_jax.evaluation import answers
from elva_jax.evaluation.benchmarks.base import Grade, Metric, Question, Response, Scores, not_asked
from elva_jax.evaluation.benchmarks.parsing import (
    check_options,
    option_line,
    parse_choice,
    strip_letters,
)
from elva_jax.utils.numbers import shown


def choice_question(
    key: str,
    media: Sequence[Media],
    text: str,
    options: Sequence[str],
    answer: int | None,
    *,
    context: str = "",
    categories: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Question:
    """A multiple-choice question, worded as in training.

    Args:
      key: its name.
      media: what it is about.
      text: the bare question.
      options: with or without their letters.
      answer: index of the right option; None: not public.
      context: text before the question, such as subtitles.
      categories: by axis, the value that results are broken down by.
      extra: what the benchmark's scoring needs besides.

    Raises:
      RecordError: the options cannot be named by letters, or the answer is none of them.
    """
    options = check_options(strip_letters(options), key)
    if answer is not None and not 0 <= answer < len(options):
        raise RecordError(key, f"its answer {answer} is none of its {len(options)} options")
    # Likelihoods are of options after `text`, which therefore holds the context, too.
    text = f"{context}\n\n{text}" if context else text
    return Question(
        key=key,
        media=tuple(media),
        prompt=choice_prompt(text, options),
        text=text,
        options=options,
        answer=answer,
        categories=dict(categories or {}),
        extra=dict(extra or {}),
    )


def letter_index(answer: object, options: Sequence[str], key: str) -> int:
    """The right option of a record that names it by its letter.

    Raises:
      RecordError: the answer is no letter, or that of no option.
    """
    said = str(answer).strip().strip("().: ").upper()
    index = LETTERS.find(said) if len(said) == 1 else -1
    if not 0 <= index < len(options):
        raise RecordError(key, f"its answer {shown(answer)} is no letter of {len(options)} options")
    return index


def text_index(answer: object, options: Sequence[str], key: str) -> int:
    """The right option of a record that names it by its text; the first of equal ones.

    Raises:
      RecordError: the text is that of no option.
    """
    said, bare = str(answer).strip(), [option.strip() for option in strip_letters(options)]
    if said in bare:
        return bare.index(said)
    if (index := answers.option_index(said, bare)) is None:
        raise RecordError(key, f"its answer {shown(said)} is none of its {len(options)} options")
    return index


def split_question(text: str) -> tuple[str, tuple[str, ...]]:
    """A question without the options that are listed after it, and the options.

    Each option has a line of its own and its letter: `(A) red`, `B. green`.
    """
    lines = text.strip().split("\n")
    count = 0
    while count < len(lines) and option_line(lines[-count - 1]):
        count += 1
    split = len(lines) - count
    return "\n".join(lines[:split]).strip(), strip_letters(lines[split:])


def grade_choice(response: Response) -> Grade:
    """Compares the option that a written answer names with the right one."""
    question = response.question
    parsed = None if response.text is None else parse_choice(response.text, question.options)
    return grade_option(response, parsed)


def grade_option(response: Response, parsed: int | None) -> Grade:
    """The grade of a response that chose an option, however it did."""
    if response.error:
        return not_asked(response)
    if response.question.answer is None:
        return Grade(response=response, parsed=parsed, status="no_reference", credit=0.0)
    if parsed is None:
        return Grade(response=response, parsed=None, status="unparsed", credit=0.0)
    right = parsed == response.question.answer
    return Grade(
        response=response, parsed=parsed, status="right" if right else "wrong", credit=float(right)
    )


def accuracy(grades: Sequence[Grade], *, name: str = "accuracy", maximum: float = 100.0) -> Metric:
    """The mean credit of all questions that have a public answer."""
    counted = [grade for grade in grades if grade.status != "no_reference"]
    credit = sum(grade.credit for grade in counted)
    value = maximum * credit / len(counted) if counted else float("nan")
    return Metric(name=name, value=value, count=len(counted), maximum=maximum)


def mean(metrics: Sequence[Metric], name: str) -> Metric:
    """The mean of those metrics that have questions, whatever their numbers."""
    asked = [metric for metric in metrics if metric.count]
    value = sum(metric.value for metric in asked) / len(asked) if asked else float("nan")
    maximum = metrics[0].maximum if metrics else 100.0
    count = sum(metric.count for metric in asked)
    return Metric(name=name, value=value, count=count, maximum=maximum)


def statuses(grades: Sequence[Grade]) -> dict[str, int]:
    """How many questions ended in which status."""
    return dict(Counter(grade.status for grade in grades))


def by_category(
    grades: Sequence[Grade],
    *,
    maximum: float = 100.0,
    known: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, Metric]]:
    """Accuracies by axis and value.

    Args:
      grades: of all questions.
      maximum: the largest value.
      known: by axis, the values to list in this order even if no question has them.
    """
    groups: dict[str, dict[str, list[Grade]]] = {
        axis: {value: [] for value in values} for axis, values in (known or {}).items()
    }
    for grade in grades:
        for axis, value in grade.response.question.categories.items():
            groups.setdefault(axis, {}).setdefault(value, []).append(grade)
    return {
        axis: {value: accuracy(group, maximum=maximum) for value, group in values.items()}
        for axis, values in groups.items()
    }


def micro_scores(maximum: float = 100.0) -> Callable[[Sequence[Grade]], Scores]:
    """A scorer whose main number is the accuracy over all questions."""

    def score(grades: Sequence[Grade]) -> Scores:
        return Scores(
            main=accuracy(grades, maximum=maximum),
            categories=by_category(grades, maximum=maximum),
            statuses=statuses(grades),
        )

    return score
