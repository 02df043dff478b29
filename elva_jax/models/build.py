"""Towers and parameter shapes of a run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from elva_jax.config.schema import Config
from elva_jax.config.serialize import typed
from elva_jax.config.tower_schema import TeacherConfig
from elva_jax.models.elva import abstract_params
from elva_jax.models.towers.build import input_shape, make_tower
from elva_jax.utils.trees import flatten_paths


def parameter_shapes(config: ConfigDict | Config, subtree: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a run's ELVA (`elva`) or vision tower (`vision`), by '/'-joined path."""
    run = typed(Config, config)
    params = abstract_params(run.model) if subtree == "elva" else _abstract_tower(run.teacher)
    tree = flatten_paths({subtree: nn.meta.unbox(params)})
    return {path: leaf.shape for path, leaf in tree.items()}


@lru_cache(maxsize=64)
def _abstract_tower(config: TeacherConfig) -> Any:
    pixels = jax.ShapeDtypeStruct(input_shape(config), jnp.float32)
    return jax.eval_shape(make_tower(config).init, jax.random.key(0), pixels)["params"]


def vision_tower(config: ConfigDict | Config) -> Any:
    """The teacher's tower: pixels in [-1, 1] to `penultimate`, `last` and `pooled` features."""
    return make_tower(typed(Config, config).teacher)
