"""How much each encoder of a MERV takes part in a video (arXiv 2501.01426, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt8

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.engine import Engine
from elva_jax.models.elva import visual_embed
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.clip import Visual

WEIGHTED = ("attention", "scalar")  # fusions with a weight for each encoder

FusionWeights = dict[str, float]  # of each encoder by name; they add up to 1


def has_weights(config: ModelConfig) -> bool:
    """Whether a model gives each of its encoders a weight."""
    return bool(config.encoders) and config.merv.fusion in WEIGHTED


def fusion_weights(engine: Engine, media: Sequence[Visual]) -> tuple[FusionWeights, ...]:
    """The weight of each encoder for each video or image; the encoders run once more for it.

    Args:
      engine: of a model that `has_weights`.
      media: as the model read them.
    """
    names = [name for name, _ in engine.config.encoders]
    found = []
    for visual in media:
        with engine.placement.on(1):
            patches = engine.placement.put(visual.patches[None])
            weights = _program(engine.config, engine.weights.visual, patches)
        values = np.asarray(weights, np.float64)[0].tolist()
        found.append(dict(zip(names, values, strict=True)))
    return tuple(found)


@partial(jax.jit, static_argnums=0)
def _program(
    config: ModelConfig, visual: Any, patches: UInt8[AnyArray, "1 N K"]
) -> Float32[Array, "1 E"]:
    module = visual_embed(config)
    weights: Any = module.apply({"params": visual}, patches, method="fusion_weights")
    return weights
