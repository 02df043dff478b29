"""Towers and parameter shapes of a run."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from elva_jax.config.schema import Config, ModelConfig, TeacherConfig
from elva_jax.config.serialize import typed
from elva_jax.models.elva import Elva, dummy_inputs
from elva_jax.models.towers.eva_clip import EvaClipVision
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.utils.trees import flatten_paths


def config_from_dict(model: ConfigDict, teacher: ConfigDict | None = None) -> ModelConfig:
    """The typed group `model`, with the vision tower of the group `teacher` where it uses one."""
    groups = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    config = typed(Config, groups).model
    return config


def parameter_shapes(config: ConfigDict, kind: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a run's ELVA (kind elva) or vision tower (kind teacher), by
    '/'-joined path."""
    key = jax.random.key(0)
    if kind == "teacher":
        side = config.teacher.image_size
        pixels = jnp.zeros((1, side, side, 3))
        tree = {"vision": jax.eval_shape(vision_tower(config).init, key, pixels)["params"]}
    else:
        model = config_from_dict(config.model, config.teacher)
        tree = {"elva": jax.eval_shape(Elva(model).init, key, *dummy_inputs(model))["params"]}
    return {path: leaf.shape for path, leaf in flatten_paths(nn.meta.unbox(tree)).items()}


def vision_tower(config: ConfigDict) -> SiglipVision | EvaClipVision:
    """The teacher's tower: pixels in [-1, 1] to `penultimate`, `last` and `pooled` features."""
    teacher = typed(TeacherConfig, config.teacher)
    return (SiglipVision if teacher.kind == "siglip" else EvaClipVision)(teacher, teacher.dtype)
