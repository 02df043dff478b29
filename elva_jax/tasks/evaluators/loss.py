"""The loss on held-out answers: the mean of -log p(token), over all and by family of questions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from elva_jax.tasks.evaluators.base import Answer, Observations, by_family


def evaluate(observed: Observations) -> Iterator[tuple[str, float]]:
    """`loss`, and `loss/FAMILY`."""
    right = right_answers(observed.own)
    yield "loss", mean_loss(right)
    for family, answers in by_family(right).items():
        yield f"loss/{family}", mean_loss(answers)


def right_answers(answers: Sequence[Answer]) -> list[Answer]:
    """The reference answers among all candidates."""
    return [answer for answer in answers if answer.candidate.right]


def mean_loss(answers: Sequence[Answer]) -> float:
    """The mean over tokens, as in the training loss; NaN without any."""
    tokens = sum(answer.tokens for answer in answers)
    return math.fsum(answer.nll for answer in answers) / tokens if tokens else math.nan
