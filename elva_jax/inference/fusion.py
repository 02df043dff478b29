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
from elva_jax.parallel.host_arrays import to_host
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.clip import Visual

WEIGHTED = ("attention", "scalar")  # fusions with a weight for each encoder

FusionWeights = dict[str, float]  # of each encoder by name; they add up to 1


def has_weights(config: ModelConfig) -> bool:
    """Whether a model gives each of its encoders a weight."""
    return bool(config.encoders) and config.merv.fusion in WEIGHTED


def by_encoder(config: ModelConfig, weights: Float32[AnyArray, "E"]) -> FusionWeights:
    """The weights of a model's encoders by their names."""
    names = [name for name, _ in config.encoders]
    return dict(zip(names, np.asarray(weights, np.float64).tolist(), strict=True))


def fusion_weights(engine: Engine, media: Sequence[Visual]) -> tuple[FusionWeights, ...]:
    """The weight of each encoder for each video or image; the encoders run once more for it.

    Args:
      engine: of a model that `has_weights`.
      media: as the model read them.
    """
    found = []
    for visual in media:
        with engine.placement.on(1):
            patches = engine.placement.put(visual.patches[None])
            weights = _program(engine.config, engine.weights.visual, patches)
        found.append(by_encoder(engine.config, to_host(weights)[0]))
    return tuple(found)


@partial(jax.jit, static_argnums=0)
def _program(
    config: ModelConfig, visual: Any, patches: UInt8[AnyArray, "1 N K"]
) -> Float32[Array, "1 E"]:
    module = visual_embed(config)
    weights: Any = module.apply({"params": visual}, patches, method="fusion_weights")
    return weights
