"""Metrics of steps, and their reduction to one report."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import struct

from elva_jax.training.goodput import STEP_PARTS
from elva_jax.utils.trees import key_path

# Scalars by name; `merge`, if there are merging layers, is a tuple of their MergeMetrics.
Metrics = dict[str, Any]
# Metrics that differ between two equal runs.
TIMING = (
    "seconds",
    "tokens_per_second",
    "model_tflops",
    "mfu",
    "memory_gib",
    "eval/seconds",
    *(f"{name}_share" for name in STEP_PARTS),
)
TERMS = (
    "loss",
    "generation",
    "tube",
    "contrastive",
    "sigmoid",
    "infonce",
)  # the losses, in the order shown
SUMMED = ("tokens", "forced", "overflow")  # add up over micro-batches and steps; others average
LAST = ("bad_steps", "bad_run", "learning_rate")  # reported as of the last step


class MergeMetrics(struct.PyTreeNode):
    """Scalars over a batch after one merging layer."""

    kept: jax.Array | float  # share of the batch's patches that are left
    forced: jax.Array | float  # merges that only the bucket asked for
    overflow: jax.Array | float  # tokens that did not fit into the bucket; must be 0
    padding: jax.Array | float  # share of the bucket that is empty


class MetricsWindow:
    """The steps since the last report.

    Their metrics are device arrays until the next step is added, so that no device waits.
    """

    def __init__(self, steps: list[Metrics] | None = None):
        self._done = list(steps or [])
        self._pending: Metrics | None = None

    def add(self, metrics: Metrics) -> None:
        """Takes a step's metrics, and fetches those of the step before."""
        self.fetch()
        self._pending = metrics

    def fetch(self) -> list[Metrics]:
        """The metrics of all steps as numbers; waits for the last step."""
        if self._pending is not None:
            self._done.append(jax.tree.map(float, jax.device_get(self._pending)))
            self._pending = None
        return list(self._done)

    @property
    def latest(self) -> Metrics:
        """The newest step that is on the host; empty at the start of a window."""
        return self._done[-1] if self._done else {}

    def report(self) -> Metrics:
        """Reduces the window and starts the next one; means are over finite values."""
        steps, self._done = self.fetch(), []
        out: Metrics = {}
        for name in steps[-1]:
            rows = [{name: step[name]} for step in steps if name in step]
            out |= jax.tree_util.tree_map_with_path(_over_steps, *rows)
        return out


def is_summed(path: tuple[Any, ...]) -> bool:
    """Whether the metric at a path is a count, which adds up over micro-batches and steps."""
    return key_path(path[-1:]) in SUMMED


def _over_steps(path: tuple[Any, ...], *values: float) -> float:
    if key_path(path[-1:]) in LAST:
        return values[-1]
    if is_summed(path):
        return sum(values)
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
