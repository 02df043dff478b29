"""Training steps of 1.5B: time, MFU and memory."""

from __future__ import annotations

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
            row |= measure_step(task, 1 if context.dry else REPEATS)
            row["flops"] = row["tflops"] * 1e12 * row["seconds"]["median"]
            row["share"] = context.share(row["flops"], row["seconds"]["median"], context.card.flops)
