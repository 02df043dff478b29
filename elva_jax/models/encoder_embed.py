"""The visual tokens of an encoder-based Video-LLM, the baseline of the paper's Table 5.

patches of whole frames -- unpatchify --> frames -- vision tower --> penultimate features [C]
    -- fc1 [C -> D] -- gelu -- fc2 [D -> D] --> one token per patch; no <FRAME>, no <LINE>
"""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float, Num

from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.models.layers import dense, patches_at_tokens
from elva_jax.models.towers.common import to_pixels, unpatchify
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import TokenLayout


class EncoderEmbed(nn.Module):
    """Patches and a layout of bare clips to visual tokens of the decoder's width.

    Frames that no token refers to cost as much as others, and their features are dropped. The
    tower's parameters are all those of a `SiglipVision`, so that it can load a teacher's; its last
    block and its head feed nothing, and XLA removes them.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declares the tower and the projector."""
        c = self.config
        self.tower = SiglipVision(self._tower, c.dtype)
        self.fc1 = dense(c.hidden_size, ("embed", "mlp"), c.dtype)
        self.fc2 = dense(c.hidden_size, ("mlp", "embed"), c.dtype)

    @property
    def _tower(self) -> TeacherConfig:
        if self.config.tower is None:
            raise ConfigError(
                "model.patch_embed: encoder needs the vision tower that the group teacher describes"
            )
        return self.config.tower

    def __call__(
        self, patches: Num[AnyArray, "B N K"], layout: TokenLayout
    ) -> Float[Array, "B S D"]:
        """Visual tokens in the compute type, zeros at text and padding.

        Args:
          patches: uint8 pixels, frame by frame; N is a multiple of the G * G patches of a frame.
          layout: fields [B, S].

        Raises:
          LayoutError: patches that are not whole frames.
        """
        tower = self._tower
        (batch, count, width), in_frame = patches.shape, self.config.frame_patches
        if count % in_frame:
            raise LayoutError(
                f"{count} patches are not whole frames of {in_frame}, which the vision tower takes"
            )
        by_frame = patches.reshape(-1, in_frame, width)
        frames = unpatchify(by_frame, tower.patch_size, tower.image_size)
        features = self.tower(to_pixels(frames)).penultimate
        x_BxNxC = features.reshape(batch, count, tower.hidden_size)
        x_BxNxD = self.fc2(nn.gelu(self.fc1(x_BxNxC), approximate=False))
        return patches_at_tokens(x_BxNxD, layout)
