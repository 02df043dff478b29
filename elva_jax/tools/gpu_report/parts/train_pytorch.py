"""The step of transformers' Qwen2 in PyTorch on as many tokens: eager, then torch.compile."""

from __future__ import annotations

from elva_jax.tools.gpu_report import stages
from elva_jax.tools.gpu_report.context import Context
from elva_jax.tools.gpu_report.parts.train import with_share

REPEATS = 3


def run(context: Context, stage: str) -> None:
    """Measures the eager step first, because compiling may take all of the time that is left."""
    from elva_jax.tools.bench.train_pytorch import measure

    for name in ("eager",) if context.dry else ("eager", "torch.compile"):
        with context.case(name, stage=stage) as row:
            task, repeats = stages.make(context, stage), 1 if context.dry else REPEATS
            row |= with_share(context, measure(task, repeats, compiled=name != "eager"))
