"""Vision towers by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from elva_jax.config.schema import TeacherConfig
from elva_jax.models.towers.dinov2 import Dinov2
from elva_jax.models.towers.eva_clip import EvaClipVision
from elva_jax.models.towers.hiera import Hiera
from elva_jax.models.towers.languagebind import LanguageBind
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.models.towers.vivit import Vivit

# By `teacher.kind`.
TOWERS: dict[str, Callable[..., nn.Module]] = {
    "siglip": SiglipVision,
    "eva_clip": EvaClipVision,
    "eva02_clip": EvaClipVision,
    "dinov2": Dinov2,
    "vivit": Vivit,
    "languagebind": LanguageBind,
    "hiera": Hiera,
}


def make_tower(config: TeacherConfig, dtype: str = "", name: str | None = None) -> Any:
    """The module of a tower: pixels in [-1, 1] of `input_shape` to `VisionFeatures`.

    Args:
      config: the tower's group of the configuration.
      dtype: compute type; "": `config.dtype`.
      name: its name as a submodule.
    """
    return TOWERS[config.kind](config, dtype or config.dtype, name=name)


def input_shape(config: TeacherConfig, count: int = 1) -> tuple[int, ...]:
    """Shape of the pixels of `count` images, or of clips where the tower sees several frames."""
    image = (config.image_size, config.image_size, 3)
    return (count, *image) if config.num_frames == 1 else (count, config.num_frames, *image)
