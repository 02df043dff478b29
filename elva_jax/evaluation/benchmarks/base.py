"""The types of a benchmark: its questions, a model's responses, and the scores made of them.

    read(root) -> questions -> the model's responses -> grade (parse, compare) -> grades -> scores

A question has options (multiple choice) or references (an open answer). Every question that could
be asked counts in the denominator, whatever became of it; `Status` says what did. Questions whose
media could not be read are counted apart, and are in no number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks.folder import Folder
from elva_jax.inference.scoring import Likelihood

Status = Literal["right", "wrong", "unparsed", "unreadable", "too_long", "unjudged", "no_reference"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a benchmark.

    Attributes:
      key: its name, unique within the benchmark.
      media: what it is about, with absolute paths (or encoded images) and the bounds of an excerpt.
      prompt: the whole text that the model reads, options and request for the form included. It
        is text, whatever it says; the media stand before it.
      text: the bare question.
      options: the candidate answers, without letters; () for an open question.
      answer: index of the right option; None: open, or not public.
      references: texts that count as a right open answer; ().
      categories: by axis, the value that results are broken down by: {"duration": "short"}.
      extra: what the benchmark's own scoring needs besides: {"subset": True}. "group" is the name
        that questions share which are scored together, such as MMBench's rotations of one; a
        bootstrap that draws their media twice gives the second copy a name of its own.
      problem: why it cannot be asked, where that was seen when it was read; "": nothing was.
    """

    key: str
    media: tuple[Media, ...]
    prompt: str
    text: str
    options: tuple[str, ...] = ()
    answer: int | None = None
    references: tuple[str, ...] = ()
    categories: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def media_key(self) -> tuple[Media, ...]:
        """Questions with the same value are about the same media, which are read once."""
        return self.media


def media_of(question: Question) -> object:
    """The media of a question, without excerpts; questions with the same are resampled together."""
    return tuple(medium.source for medium in question.media) or question.key


@dataclass(frozen=True, kw_only=True)
class Response:
    """The answers of a model to one question.

    Attributes:
      question: the question.
      text: the written answer; None: its media could not be read, or it was not asked for.
      likelihoods: of each option's text as the whole answer; () where not measured.
      letters: of each option's letter as the whole answer; () where not measured.
      error: why it could not be asked; "": it could.
      fits: whether the model can take a question of this length; others count as wrong.
      tokens: prompt tokens before merging, then after each merging layer.
      seconds: the batch's time divided by its questions; reading apart.
      finished: whether the written answer ended by itself.
    """

    question: Question
    text: str | None = None
    likelihoods: tuple[Likelihood, ...] = ()
    letters: tuple[Likelihood, ...] = ()
    error: str = ""
    fits: bool = True
    tokens: tuple[int, ...] = ()
    seconds: float = 0.0
    finished: bool = True


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A response after parsing and comparison.

    Attributes:
      response: the response.
      parsed: the option's index, or the open answer as it was compared; None: unparsed.
      status: what became of the question.
      credit: 1 right, 0 not; another number where a judge or the benchmark gives one.
      details: more numbers by name, such as {"judge_score": 4, "token_f1": 0.5}.
    """

    response: Response
    parsed: int | str | None
    status: Status
    credit: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a benchmark.

    Attributes:
      name: as in the benchmark's paper: "accuracy", "M-Avg", "f1".
      value: on the scale of `maximum`; NaN where nothing was asked.
      count: number of questions in the denominator; those that could not be asked are not.
      maximum: the largest possible value: 100, 1, 5 or 2000.
      low: lower end of the 95 % interval of a bootstrap over media; NaN: none.
      high: its upper end.
    """

    name: str
    value: float
    count: int
    maximum: float = 100.0
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one benchmark.

    Attributes:
      main: the number that is published.
      others: further numbers of the benchmark, such as the mean over tasks.
      categories: by axis and value.
      statuses: how many questions ended in which status.
    """

    main: Metric
    others: tuple[Metric, ...] = ()
    categories: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    statuses: Mapping[str, int] = field(default_factory=dict)


def not_asked(response: Response) -> Grade:
    """The grade of a response with an error; only a question that is too long counts as wrong."""
    status: Status = "unreadable" if response.fits else "too_long"
    return Grade(response=response, parsed=None, status=status, credit=0.0)


def could_be_asked(grades: Iterable[Grade]) -> list[Grade]:
    """The grades of questions whose media could be read: those that are scored."""
    return [grade for grade in grades if grade.status != "unreadable"]


def scored(score: Callable[[Sequence[Grade]], Scores], grades: Sequence[Grade]) -> Scores:
    """The numbers over the questions that could be asked, with the number of the others."""
    asked = could_be_asked(grades)
    found = score(asked)
    if (missing := len(grades) - len(asked)) == 0:
        return found
    return dataclasses.replace(found, statuses={**found.statuses, "unreadable": missing})


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over grades from which all numbers of a benchmark follow.

    A resample's numbers then need no score function, only a weighted sum.

    Attributes:
      values: float [N, K], what each grade adds to the sums.
      numbers: all numbers of `score` on resamples, float [R] each, from their sums [R, K]; by axis
        and category ("" for the whole) and name; NaN where nothing was asked.
    """

    values: np.ndarray
    numbers: Callable[[np.ndarray], Mapping[tuple[str, str, str], np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark, as one row of the table in `registry`.

    Attributes:
      name: as on the command line.
      title: as in print.
      kind: how an answer is made and compared.
      reader: the questions below a folder in the benchmark's own file layout, in a fixed order.
        Raises DataError with the file that is missing or damaged. `read` calls it.
      grade: parses and compares one response. Judged benchmarks use exact match here; `judge`
        replaces their grades where an endpoint is given.
      score: the benchmark's numbers from the grades that count (`scored`), without intervals.
      tally: the same numbers from sums, for the intervals of those that are no means; it gives None
        for grades that cannot be summed medium by medium. None: `score` sees every resample.
      max_new_tokens: length of a written answer.
      judge: name of the judge's protocol in `evaluation.judge`; "": none.
      files: the layout below the root in words, for messages and docs.
      scoring: the main number in words, for docs.
      submission: the content of the JSON file that the benchmark's server takes, from all grades;
        None: everything is scored here.
      root: its folder, where that is not one below the folder of all benchmarks.
    """

    name: str
    title: str
    kind: Literal["choice", "open", "yes_no"]
    reader: Callable[[Folder], Sequence[Question]]
    grade: Callable[[Response], Grade]
    score: Callable[[Sequence[Grade]], Scores]
    tally: Callable[[Sequence[Grade]], Tally | None] | None = None
    max_new_tokens: int = 16
    judge: Literal["", "qa", "video_chatgpt"] = ""
    files: str = ""
    scoring: str = ""
    submission: Callable[[Sequence[Grade]], Any] | None = None
    root: Path | None = None

    def read(
        self, root: str | Path, *, around: Path | None = None, follow_links: bool = False
    ) -> tuple[Question, ...]:
        """The questions below a folder. Those about media that may not be read say so.

        Args:
          root: the folder.
          around: a folder into which links may lead, such as that of all benchmarks; None: `root`.
          follow_links: whether links may lead anywhere.

        Raises:
          DataError: a file is missing or damaged, or a link that leads elsewhere.
        """
        folder = Folder(path=Path(root), around=around, follow_links=follow_links)
        questions = tuple(self.reader(folder))
        sources = {medium.source for question in questions for medium in question.media}
        refused = {each: why for each in sources if (why := folder.refusal_of(each))}
        return tuple(_marked(question, refused) for question in questions)


def _marked(question: Question, refused: Mapping[Any, str]) -> Question:
    """The question with the reason why one of its media may not be read."""
    for medium in question.media:
        if problem := refused.get(medium.source):
            return dataclasses.replace(question, problem=problem)
    return question


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One benchmark asked of one model.

    Attributes:
      benchmark: its name.
      title: as in print.
      scores: by way of answering: "generated", "likelihood" (sum of log-probabilities of the option
        texts), "likelihood_char" and "likelihood_token" (per character, per token), "letter"
        (likeliest letter). The first one is the headline.
      grades: by way of answering, in the order of the questions.
      settings: all that a comparison needs: model, step, weights_hash, dtype, device, frames,
        edges, hybrid, merging, prompt version, judge and its prompt version, versions of packages.
      seconds: wall-clock time.
    """

    benchmark: str
    title: str
    scores: Mapping[str, Scores]
    grades: Mapping[str, tuple[Grade, ...]]
    settings: Mapping[str, Any]
    seconds: float = 0.0
