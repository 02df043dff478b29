"""Towers and parameter shapes of a run."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from elva_jax.config.schema import Config
from elva_jax.config.serialize import typed
from elva_jax.models.elva import Elva, dummy_inputs
from elva_jax.models.towers.build import input_shape, make_tower
from elva_jax.utils.trees import flatten_paths


def parameter_shapes(config: ConfigDict | Config, subtree: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a run's ELVA (`elva`) or vision tower (`vision`), by '/'-joined path."""
    tree = {subtree: jax.eval_shape(lambda: INIT[subtree](config))["params"]}
    return {path: leaf.shape for path, leaf in flatten_paths(nn.meta.unbox(tree)).items()}


def _init_elva(config: ConfigDict | Config) -> Any:
    model = typed(Config, config).model
    return Elva(model).init(jax.random.key(0), *dummy_inputs(model))


def _init_vision(config: ConfigDict | Config) -> Any:
    tower = vision_tower(config)
    return tower.init(jax.random.key(0), jnp.zeros(input_shape(tower.config)))


INIT = {"elva": _init_elva, "vision": _init_vision}


def vision_tower(config: ConfigDict | Config) -> Any:
    """The teacher's tower: pixels in [-1, 1] to `penultimate`, `last` and `pooled` features."""
    return make_tower(typed(Config, config).teacher)
