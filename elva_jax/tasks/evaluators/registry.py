"""The table of evaluators by their names in `eval.evaluators`."""

from __future__ import annotations

from elva_jax.tasks.evaluators import accuracy, loss, merging, retrieval
from elva_jax.tasks.evaluators.base import Evaluator

EVALUATORS: dict[str, Evaluator] = {
    "loss": loss.evaluate,
    "accuracy": accuracy.evaluate,
    "retrieval": retrieval.evaluate,
    "merging": merging.evaluate,
}
