"""The input of evaluators: the scores of answers and the features of frames.

    held-out rows -> forward pass -> Answer of each candidate, Frames -> evaluators -> (name, value)

A new evaluator is a module with a function of the type `Evaluator`, its line in `registry` and its
name in `config.stage_schema.Evaluator`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One possible answer to a question.

    Attributes:
      example: number of the example among the held-out ones.
      turn: number of the question in it.
      option: which of its options; -1: the reference answer of a question without any.
      right: whether it is the reference answer.
      family: the question's family, or else its task.
    """

    example: int
    turn: int
    option: int
    right: bool
    family: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The scores of a candidate and its end token, each token given the right ones before it.

    Attributes:
      candidate: the candidate.
      nll: sum of the tokens' negative log-likelihoods.
      tokens: their number.
      exact: whether each of them is the likeliest, so that greedy decoding writes this answer.
    """

    candidate: Candidate
    nll: float
    tokens: int
    exact: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Normalized features of all held-out frames, by teacher."""

    ours: dict[str, np.ndarray]  # float32 [M, C], of the frame head
    theirs: dict[str, np.ndarray]  # float32 [M, C], of the teacher
    example: np.ndarray  # int [M]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observations:
    """All that one evaluation has measured, the same in every process.

    Attributes:
      answers: by whether tokens merged; in order of example, turn and option.
      merging: how the stage itself runs.
      frames: with the evaluator `retrieval` only.
    """

    answers: dict[bool, tuple[Answer, ...]]
    merging: bool
    frames: Frames | None = None

    @property
    def own(self) -> tuple[Answer, ...]:
        """The answers with merging as in the stage."""
        return self.answers[self.merging]


Evaluator = Callable[[Observations], Iterator[tuple[str, float]]]


def by_family(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """The answers of each family, sorted by its name."""
    families: dict[str, list[Answer]] = {}
    for answer in answers:
        families.setdefault(answer.candidate.family, []).append(answer)
    return dict(sorted(families.items()))
