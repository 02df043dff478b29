"""The number of steps of a stage: the config's, or Table 7's epochs over the paper's data."""

from __future__ import annotations

import dataclasses
import math

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.tasks.base import ModelTask
from elva_jax.tools.analysis.paper import EXAMPLES
from elva_jax.video.layout import frame_tokens

TEXT_TOKENS = 200  # per example, prompt and answers
FILL = 0.9  # share of a packed row that is not padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length of a stage."""

    steps: int
    tokens: int  # per step, including padding
    source: str  # of the number of steps


def schedule(task: ModelTask) -> Schedule:
    """The steps of a stage; the data themselves are not needed.

    If the stage counts in epochs, an example has square frames of `longest_edge`, the largest
    possible ones, and `TEXT_TOKENS`; packed rows are `FILL` full.

    Raises:
      ConfigError: epochs over data whose size the paper does not state.
    """
    stage, data, key = task.stage, task.stage.data, f"stages.{task.name}.steps"
    tokens = stage.batch_size * task.row_tokens
    if stage.steps:
        return Schedule(steps=stage.steps, tokens=tokens, source=key)
    examples, lengths = 0, 0
    for label in data.mixture:
        known = EXAMPLES.get(label)
        if known is None:
            raise ConfigError(
                f"{key}: the paper does not say how many examples {label} has; set --config.{key}=N"
            )
        frames = data.num_frames if known.video else 1
        visual = _visual_tokens(task.config.model, frames, data.longest_edge)
        length = min(visual + TEXT_TOKENS, data.seq_len)
        examples, lengths = examples + known.count, lengths + known.count * length
    if task.packs_rows:
        steps = math.ceil(stage.epochs * lengths / (FILL * tokens))
    else:
        steps = math.ceil(stage.epochs * examples / stage.batch_size)
    source = f"{stage.epochs:g} epoch(s) of the paper's {examples / 1e6:.2f}M examples"
    return Schedule(steps=steps, tokens=tokens, source=source)


def _visual_tokens(model: ModelConfig, frames: int, edge: int) -> int:
    """Those of square frames; MERV has as many for any video or image."""
    if model.encoders:
        return model.frame_patches
    side = max(edge // model.patch_size, 1)
    return frames * frame_tokens(side, side)
