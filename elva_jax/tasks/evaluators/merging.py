"""The cost of merging: loss and accuracy with merging minus those without, on the same answers."""

from __future__ import annotations

from collections.abc import Iterator

from elva_jax.tasks.evaluators.accuracy import SHARES
from elva_jax.tasks.evaluators.base import Observations
from elva_jax.tasks.evaluators.loss import mean_loss, right_answers


def evaluate(observed: Observations) -> Iterator[tuple[str, float]]:
    """`merging/loss`, `merging/exact` and, with options, `merging/choice`."""
    merged, whole = observed.answers[True], observed.answers[False]
    yield "merging/loss", mean_loss(right_answers(merged)) - mean_loss(right_answers(whole))
    for name, share in SHARES.items():
        on, off = share(merged), share(whole)
        if on is not None and off is not None:
            yield f"merging/{name}", on - off
