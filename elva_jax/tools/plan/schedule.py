"""How many steps a stage takes: what the config says, or Table 7's epochs over the paper's data, which need not be there."""

from __future__ import annotations

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from elva_jax.errors import ConfigError
from elva_jax.tasks.registry import make_task
from elva_jax.tools.analysis.paper import EXAMPLES
from elva_jax.video.layout import frame_tokens

TEXT_TOKENS = 200  # of one example, prompt and answers
FILL = 0.9  # part of a packed row that is not padding


class Schedule(NamedTuple):
    """A stage from its first step to its last."""

    steps: int
    tokens: int  # of a step, padding included
    source: str  # where the steps come from


def schedule(config: ConfigDict, name: str) -> Schedule:
    """Steps of a stage.

    Where it counts in epochs, an example has square frames of `longest_edge`, the most that a frame can have, and `TEXT_TOKENS`; rows
    are `FILL` full where examples are packed.

    Raises:
      ConfigError: epochs over data of which the paper does not say how large it is.
    """
    stage = config.stages[name]
    data = stage.data
    task = make_task(config, name)
    tokens = stage.batch_size * task.row_tokens
    if stage.steps:
        return Schedule(stage.steps, tokens, f"stages.{name}.steps")
    examples, lengths = 0, 0
    for label in data.mixture:
        known = EXAMPLES.get(label)
        if known is None:
            raise ConfigError(
                f"stages.{name}.steps: the paper does not say how many examples {label} has; set --config.stages.{name}.steps=N"
            )
        frames = data.num_frames if known.video else 1
        side = max(data.longest_edge // config.model.patch_size, 1)
        length = min(frames * frame_tokens(side, side) + TEXT_TOKENS, data.seq_len)
        examples, lengths = examples + known.count, lengths + known.count * length
    if not task.packs_rows:
        steps = math.ceil(stage.epochs * examples / stage.batch_size)
    else:
        steps = math.ceil(stage.epochs * lengths / (FILL * tokens))
    return Schedule(
        steps, tokens, f"{stage.epochs:g} epoch(s) of the paper's {examples / 1e6:.2f}M examples"
    )
