"""Model FLOPs utilization (MFU): the FLOPs a model needs over the peak of its devices.

    MFU = FLOPs of forward and backward pass / (seconds * peak FLOP/s of all devices)

Counted as in PaLM (arXiv 2204.02311, appendix B): matrix products only, the backward pass as twice
the forward pass, nothing for recomputation, nothing for padding. Attention counts the pairs that
the causal mask of each packed example leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from elva_jax.config.schema import Config
from elva_jax.training.metrics import Metrics
from elva_jax.training.setup import TrainSetup
from elva_jax.training.task import Content, TrainedMatrices

# FLOP/s of bfloat16 products, from the makers' data sheets (dense); the first name that is part of
# JAX's name of the device counts.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}


def peak_flops(config: Config) -> float | None:
    """The peak FLOP/s of all devices of the run, or None if that is unknown."""
    peak = config.log.peak_tflops * 1e12
    if not peak and config.model.dtype == "bfloat16":
        kind = jax.devices()[0].device_kind
        peak = next((value for name, value in PEAKS.items() if name in kind), 0.0)
    return peak * jax.device_count() or None


def memory_gib() -> float | None:
    """The most memory in use so far on one device of this process, if devices tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    return max(peaks) / 2**30 if peaks else None


class Speed:
    """Tokens and FLOPs per second of the steps since the last report."""

    def __init__(self, setup: TrainSetup):
        self._task, self._peak = setup.task, peak_flops(setup.task.config)
        self._matrices = TrainedMatrices(setup.optimizer.labels, setup.shapes.params)
        self._content, self._steps = Content(), 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Adds a step on this process's batch."""
        self._content, self._steps = self._content + self._task.content(batch), self._steps + 1

    def report(self, timing: dict[str, float], metrics: Metrics) -> dict[str, float]:
        """`timing` of the clock, and the speed that follows from it; starts the next window.

        Args:
          timing: seconds per step and their shares, or nothing.
          metrics: means over the same steps.
        """
        content, steps = self._content, self._steps
        self._content, self._steps = Content(), 0
        memory = memory_gib()
        out = timing if memory is None else {**timing, "memory_gib": memory}
        if timing:
            seconds = timing["seconds"] * steps
            flops = self._task.flops(content, metrics, self._matrices) / seconds
            out |= {"tokens_per_second": content.tokens / seconds, "model_tflops": flops / 1e12}
            out |= {"mfu": flops / self._peak} if self._peak else {}
        return out
