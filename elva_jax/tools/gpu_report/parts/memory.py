"""Table 5's memory: one model per process, whose programs the part `table5` has compiled.

The allocator's high-water mark only rises, and trying kernels while compiling raises it too.
"""

from __future__ import annotations

from elva_jax.tools.gpu_report.context import Context
from elva_jax.tools.gpu_report.parts.table5 import CONTENT, frames_of, models_of


def run(context: Context, variant: str) -> None:
    """Measures from few frames to many."""
    import jax

    from elva_jax.tools.bench.memory import peak_bytes

    model = models_of(context, (variant,))[variant]
    jax.block_until_ready(model.weights)
    for frames in frames_of(context):
        with context.case(f"{variant} {frames}", variant=variant, frames=frames) as row:
            question = model.question(frames, CONTENT, 1)
            peak = peak_bytes(question.first)
            row["weights_bytes"] = model.held_bytes()
            row["peak_bytes"] = None if peak is None else model.held_bytes() + peak
