"""Accuracy on held-out questions, over all and by family, without writing an answer.

exact    share of answers that greedy decoding would write: every token is the likeliest one
choice   share of questions with options whose right option is the likeliest one as a whole
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from elva_jax.tasks.evaluators.base import Answer, Observations, by_family
from elva_jax.tasks.evaluators.loss import right_answers


def evaluate(observed: Observations) -> Iterator[tuple[str, float]]:
    """`exact`, `choice`, and both by family; a share that no question counts in is left out."""
    for name, share in SHARES.items():
        for family, answers in {"": observed.own, **by_family(observed.own)}.items():
            value = share(answers)
            if value is not None:
                yield f"{name}/{family}" if family else name, value


def exact(answers: Sequence[Answer]) -> float | None:
    """The share of reference answers of which every token is the likeliest; None without any."""
    right = right_answers(answers)
    return sum(answer.exact for answer in right) / len(right) if right else None


def choice(answers: Sequence[Answer]) -> float | None:
    """The share of questions whose likeliest option is right; None without options."""

    def question(answer: Answer) -> tuple[int, int]:
        return answer.candidate.example, answer.candidate.turn

    optional = [answer for answer in answers if answer.candidate.option >= 0]
    chosen = [
        min(options, key=lambda answer: answer.nll)
        for _, options in itertools.groupby(optional, question)
    ]
    return sum(answer.candidate.right for answer in chosen) / len(chosen) if chosen else None


SHARES: dict[str, Callable[[Sequence[Answer]], float | None]] = {"exact": exact, "choice": choice}
