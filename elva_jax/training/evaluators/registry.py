"""The table of evaluators by their names in `eval.evaluators`."""

from __future__ import annotations

from elva_jax.training.evaluators import accuracy, loss, merging, retrieval
from elva_jax.training.evaluators.base import Evaluator

EVALUATORS: dict[str, Evaluator] = {
    "loss": loss.evaluate,
    "accuracy": accuracy.evaluate,
    "retrieval": retrieval.evaluate,
    "merging": merging.evaluate,
}


def smaller_is_better(metric: str, better: str) -> bool:
    """The direction of a number by `eval.better`; a loss is smaller by itself."""
    return better == "smaller" or (better == "auto" and "loss" in metric.split("/"))
