"""Towers and parameter shapes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from elva_jax.config.schema import Config
from elva_jax.config.serialize import typed
from elva_jax.models.elva import Elva, dummy_inputs
from elva_jax.models.towers.eva_clip import EvaClipVision
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.utils.trees import flatten_paths


def parameter_shapes(config: ConfigDict | Config, subtree: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a run's ELVA (`elva`) or vision tower (`vision`), by '/'-joined path."""
    tree = {subtree: jax.eval_shape(lambda: INIT[subtree](config))["params"]}
    return {path: leaf.shape for path, leaf in flatten_paths(nn.meta.unbox(tree)).items()}


def _init_elva(config: ConfigDict | Config) -> Any:
    model = typed(Config, config).model
    return Elva(model).init(jax.random.key(0), *dummy_inputs(model))


def _init_vision(config: ConfigDict | Config) -> Any:
    side = config.teacher.image_size
    return vision_tower(config).init(jax.random.key(0), jnp.zeros((1, side, side, 3)))


INIT = {"elva": _init_elva, "vision": _init_vision}


# By `teacher.kind`.
TOWERS: dict[str, Callable[..., SiglipVision | EvaClipVision]] = {
    "siglip": SiglipVision,
    "eva_clip": EvaClipVision,
    "eva02_clip": EvaClipVision,
}


def vision_tower(config: ConfigDict | Config) -> SiglipVision | EvaClipVision:
    """The teacher's tower: pixels in [-1, 1] to `penultimate`, `last` and `pooled` features."""
    teacher = typed(Config, config).teacher
    return TOWERS[teacher.kind](teacher, teacher.dtype)
