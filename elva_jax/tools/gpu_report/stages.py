"""The stages whose steps are measured and planned: of the paper's 1.5B, or of the tiny config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from elva_jax.tools.gpu_report.cards import plan_device
from elva_jax.tools.gpu_report.context import Context

if TYPE_CHECKING:
    from elva_jax.tasks.base import ModelTask

CONFIGS = Path(__file__).parents[3] / "configs"
ROWS = 4  # of a step; stage 3 has one micro-batch for each
TINY = {"stage2": "video", "stage3": "sft"}


def make(context: Context, stage: str, *overrides: str) -> ModelTask:
    """The task of `stage2` or `stage3`.

    Raises:
      ConfigError: the repository's configs are not beside the package.
    """
    from elva_jax.config.load import load, resolve
    from elva_jax.tasks.registry import make_task

    if context.dry:
        name = TINY[stage]
        spec = f"{CONFIGS}/tiny.py:smoke"
        overrides = tuple(word.replace(f".{stage}.", f".{name}.") for word in overrides)
    else:
        name, spec = stage, f"{CONFIGS}/elva.py:size=1_5b,stage={stage[-1]}"
    rows = 2 if context.dry else ROWS
    words = [f"--config.stages.{name}.batch_size={rows}", *overrides]
    if stage == "stage3" and not context.dry:
        words.append(f"--config.stages.{name}.optimizer.accumulate={rows}")
    return make_task(resolve(load(spec, words)), name)


def device_kind(context: Context) -> str:
    """The card's name in `elva plan`."""
    return plan_device(context.card.name)
