"""The visual tokens of an encoder-based Video-LLM (the baseline of the paper's Table 5): a vision tower and an MLP projector."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.models.towers.common import unpatchify
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.ops import linear
from elva_jax.video.layout import Kind, TokenLayout


class EncoderEmbed(nn.Module):
    """uint8 patches and a layout of bare clips to visual tokens of the decoder's width.

    The patches are put together to frames again, which the tower sees one by one; its penultimate features pass two linear maps
    C -> D -> D with a GELU between them. Frames that no token names cost as much as others and go nowhere. The tower's parameters are all
    those of a `SiglipVision`, so that it takes a teacher's as they are; its last block and its head act on nothing and cost nothing.
    """

    config: ModelConfig

    def setup(self):
        dtype, features = jnp.dtype(self.config.dtype), self.config.hidden_size

        def dense(*axes: str) -> nn.Dense:
            return nn.Dense(
                features,
                dtype=dtype,
                dot_general=linear.dot_general,
                kernel_init=nn.with_logical_partitioning(nn.initializers.normal(0.02), axes),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
            )

        self.tower = SiglipVision(self._tower, self.config.dtype)
        self.fc1 = dense("embed", "mlp")
        self.fc2 = dense("mlp", "embed")

    @property
    def _tower(self) -> TeacherConfig:
        if self.config.tower is None:
            raise ConfigError(
                "model.patch_embed: encoder needs the vision tower that the group teacher describes"
            )
        return self.config.tower

    def __call__(self, patches_BxNxK: jax.Array, layout: TokenLayout) -> jax.Array:
        """Visual tokens [B, S, D] in the compute type: zeros at text and padding.

        Args:
          patches_BxNxK: uint8 pixels, frame by frame, N a multiple of the G*G patches of a frame.
          layout: integer fields [B, S].

        Raises:
          LayoutError: patches that are not whole frames.
        """
        batch, count, width = patches_BxNxK.shape
        tower, in_frame = self._tower, self.config.frame_patches
        if count % in_frame:
            raise LayoutError(
                f"{count} patches are not whole frames of {in_frame}, which the vision tower takes"
            )
        frames_MxHxWx3 = unpatchify(
            patches_BxNxK.reshape(-1, in_frame, width), tower.patch_size, tower.image_size
        )
        features = self.tower(frames_MxHxWx3.astype(jnp.float32) / 127.5 - 1.0).penultimate
        x_BxNxC = features.reshape(batch, count, tower.hidden_size)
        x_BxNxD = self.fc2(nn.gelu(self.fc1(x_BxNxC), approximate=False))
        is_patch_BxSx1 = (layout.kind == Kind.PATCH)[..., None]
        own_BxSx1 = jnp.where(is_patch_BxSx1, layout.patch_index[..., None], 0)
        return jnp.where(is_patch_BxSx1, jnp.take_along_axis(x_BxNxD, own_BxSx1, axis=1), 0)
