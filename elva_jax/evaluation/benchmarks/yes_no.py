"""Questions whose answer is yes or no: how they are written and graded.

The options are "Yes" and "No", so that their likelihoods can be compared, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.data.example import Media
from elva_jax.errors import RecordError
from elva_jax.evaluation.benchmarks import choice
from elva_jax.evaluation.benchmarks.base import Grade, Question, Response
from elva_jax.evaluation.benchmarks.parsing import parse_yes_no
from elva_jax.utils.numbers import shown

OPTIONS = ("Yes", "No")
YES, NO = 0, 1  # indices of the options
REQUEST = "Answer with yes or no."
_REQUESTS = re.compile(r"(?i:please )?(?i:answer) (?i:with )?(?i:yes or no)\.?\s{0,8}\Z")


def yes_no_question(
    key: str,
    media: Sequence[Media],
    text: str,
    answer: str | None,
    *,
    categories: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Question:
    """A question with one request for yes or no, whether or not its text ends with another.

    Args:
      key: its name, also in messages.
      media: what it is about.
      text: the question.
      answer: "yes" or "no" in any case; None: not public.
      categories: by axis, the value that results are broken down by.
      extra: what the benchmark's scoring needs besides.

    Raises:
      RecordError: the answer is neither.
    """
    text = _REQUESTS.sub("", text.strip()).strip()
    said = None if answer is None else parse_yes_no(answer)
    if answer is not None and said is None:
        raise RecordError(key, f"its answer {shown(answer)} is neither yes nor no")
    return Question(
        key=key,
        media=tuple(media),
        prompt=f"{text}\n{REQUEST}",
        text=text,
        options=OPTIONS,
        answer=None if said is None else _index(said),
        categories=dict(categories or {}),
        extra=dict(extra or {}),
    )


def grade_yes_no(response: Response) -> Grade:
    """Compares a written yes or no; `parsed` is `YES`, `NO` or None."""
    said = None if response.text is None else parse_yes_no(response.text)
    return choice.grade_option(response, None if said is None else _index(said))


def _index(said: str) -> int:
    return YES if said == "yes" else NO
