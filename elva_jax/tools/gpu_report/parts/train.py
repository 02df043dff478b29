"""Training steps of 1.5B: time, MFU and memory."""

from __future__ import annotations

from typing import Any

from elva_jax.tools.gpu_report import stages
from elva_jax.tools.gpu_report.context import Context

REPEATS = 4
# What may be set to trade memory for time; the first line is the config's own.
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "stage3": {
        "as configured": (),
        "without merging": (
            "--config.stages.stage3.merging=False",
            "--config.stages.stage3.merge_buckets=()",
        ),
        "remat names": ("--config.model.remat=names",),
    },
    "stage2": {"as configured": (), "remat names": ("--config.model.remat=names",)},
}


def run(context: Context, stage: str) -> None:
    """Measures a stage's step with each of its settings."""
    from elva_jax.tools.bench.train import measure_step

    settings = SETTINGS[stage]
    for name in list(settings)[: 1 if context.dry else None]:
        with context.case(name, stage=stage) as row:
            task = stages.make(context, stage, *settings[name])
            row |= with_share(context, measure_step(task, 1 if context.dry else REPEATS))


def with_share(context: Context, report: dict[str, Any]) -> dict[str, Any]:
    """A trainer's report with the FLOPs of a step, and their share of the card's peak."""
    seconds = report["seconds"]["median"]
    work = report["tflops"] * 1e12 * seconds
    return {**report, "flops": work, "share": context.share(work, seconds, context.card.flops)}
