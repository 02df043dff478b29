"""A vision tower over clips beside a text tower: the model of a teacher's video pre-training.

clip [F, H, W, 3] -> vision tower on frames (or on clips of its own length)
                  -> pooled features -> mean over the clip -> linear map -+
                                                                          +-> contrastive loss
caption [L]       -> text tower -> pooled feature          -> linear map -+
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from elva_jax.config.schema import ContrastConfig, TeacherConfig, TextTowerConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.bert import Bert
from elva_jax.models.towers.build import input_shape, make_tower
from elva_jax.models.towers.common import recomputed_blocks, to_pixels
from elva_jax.models.towers.siglip import SiglipText
from elva_jax.ops.normalize import l2_normalize
from elva_jax.utils.arrays import AnyArray

LECUN = nn.initializers.lecun_normal()


class VideoText(nn.Module):
    """Both towers, `vision` and `text`, and `contrast`: the maps and the temperature."""

    teacher: TeacherConfig
    text_tower: TextTowerConfig
    contrast_config: ContrastConfig
    vocab_size: int  # of the captions' tokenizer

    def setup(self) -> None:
        """Declares the towers, which compute in `teacher.dtype`."""
        dtype = self.teacher.dtype
        self.vision = make_tower(self.teacher, dtype)
        self.text: Any
        if self.text_tower.kind == "bert":
            self.text = Bert(self.text_tower, self.vocab_size, dtype)
        else:
            self.text = SiglipText(self.teacher, self.vocab_size, dtype)
        self.contrast = ContrastHead(self.contrast_config)

    def __call__(
        self,
        frames: UInt8[AnyArray, "n F H W 3"],
        frame_mask: Bool[AnyArray, "n F"],
        token_ids: Int[AnyArray, "n L"],
        mask: Bool[AnyArray, "n L"],
    ) -> tuple[Float[Array, "n C"], Float[Array, "n C"], Float[Array, ""]]:
        """Features of clips and captions, float32 and not normalized, and the log temperature.

        Slots of `frames` without a frame are False in `frame_mask`; a tower that sees clips needs
        all of them.

        Raises:
          ConfigError: frames that do not divide into the clips of the tower.
        """
        if not self.contrast_config.remat:
            return self._features(frames, frame_mask, token_ids, mask)
        with recomputed_blocks():
            return self._features(frames, frame_mask, token_ids, mask)

    def _features(
        self, frames: AnyArray, frame_mask: AnyArray, token_ids: AnyArray, mask: AnyArray
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        clip_nxC = self._encode_clips(frames, frame_mask)
        if self.text_tower.kind == "bert":
            text_nxC = self.text(token_ids, mask).pooled
        else:
            text_nxC = self.text(token_ids)
        return self.contrast(clip_nxC, text_nxC.astype(jnp.float32))

    def _encode_clips(self, frames: AnyArray, frame_mask: AnyArray) -> jax.Array:
        """Pooled features [n, C], by `contrast.frame_pooling`."""
        n, count = frames.shape[:2]
        at_once = self.teacher.num_frames
        if count % at_once:
            raise ConfigError(
                f"clips of {count} frames do not divide into the {at_once} frames that a"
                f" {self.teacher.kind} sees (teacher.num_frames)"
            )
        pixels = to_pixels(jnp.asarray(frames)).reshape(input_shape(self.teacher, -1))
        pooled_MxC = self.vision(pixels).pooled
        pooled_nxMxC = pooled_MxC.astype(jnp.float32).reshape(n, count // at_once, -1)
        if self.contrast_config.frame_pooling == "direction":
            pooled_nxMxC = l2_normalize(pooled_nxMxC)
        seen_nxMx1 = jnp.asarray(frame_mask)[:, ::at_once, None]
        total_nxC = jnp.sum(jnp.where(seen_nxMx1, pooled_nxMxC, 0.0), axis=1)
        return total_nxC / jnp.maximum(jnp.sum(seen_nxMx1, axis=1), 1)


class ContrastHead(nn.Module):
    """The space in which clips and captions are compared."""

    config: ContrastConfig

    @nn.compact
    def __call__(
        self, clip: Float[Array, "n V"], text: Float[Array, "n T"]
    ) -> tuple[Float[Array, "n C"], Float[Array, "n C"], Float[Array, ""]]:
        """Both features in one width, and the log temperature.

        Raises:
          ConfigError: towers of different widths without maps.
        """
        start = nn.initializers.constant(math.log(self.config.temperature))
        log_temperature: Any = self.param("log_temperature", start, ())
        if self.config.projection:
            clip, text = self._project("clip", clip), self._project("text", text)
        elif clip.shape[-1] != text.shape[-1]:
            raise ConfigError(
                f"clips have features of width {clip.shape[-1]}, captions of {text.shape[-1]};"
                " set contrast.projection to the width in which to compare them"
            )
        return clip, text, jnp.asarray(log_temperature)

    def _project(self, name: str, x: jax.Array) -> jax.Array:
        shape, axes = (x.shape[-1], self.config.projection), ("embed", None)
        kernel: Any = self.param(f"{name}_kernel", nn.with_logical_partitioning(LECUN, axes), shape)
        return x @ kernel
