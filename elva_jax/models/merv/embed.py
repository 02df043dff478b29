"""The visual tokens of MERV (arXiv 2501.01426): frozen encoders, alignment, projectors, fusion.

    pixels of a clip -- frames of encoder e -- tower_e --> [T', G, G, C_e]
        -- adaptive average pooling --> [slots * grid * grid, C_e]
        -- projector_e, a linear map --> X_e [L, D]
    X_1, ..., X_E -- fusion --> one token per patch; no <FRAME>, no <LINE>

A clip's patches hold the pixels of its views one after another; see `video.merv`.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from elva_jax.config.merv import View, all_views, encoder_views
from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.models.layers import dense, patches_at_tokens
from elva_jax.models.merv.align import adaptive_average_pool_3d
from elva_jax.models.merv.fusion import Fusion, Weights
from elva_jax.models.towers.build import input_shape, make_tower
from elva_jax.models.towers.features import tower_features
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import TokenLayout

Pictures = dict[View, Num[Array, "n slots H W 3"]]


class MervEmbed(nn.Module):
    """Patches and a layout of bare clips to visual tokens of the decoder's width.

    The towers are submodules `tower_NAME`, whose parameters are all those of a tower, so that it
    can load them from anywhere. No gradient reaches them. Clips that no token refers to cost as
    much as others.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declares towers, projectors and the fusion."""
        c, found = self.config, tuple(name for name, _ in self.config.encoders)
        if not found or found != c.merv.encoders:
            raise ConfigError(
                f"model.merv.encoders: needs one or more names of the group encoders, got"
                f" {c.merv.encoders}"
            )
        for name, encoder in c.encoders:
            setattr(self, f"tower_{name}", make_tower(encoder, c.dtype))
            setattr(self, f"projector_{name}", dense(c.hidden_size, (None, "embed"), c.dtype))
        self.fusion = Fusion(c)

    def __call__(
        self, patches: Num[AnyArray, "B N K"], layout: TokenLayout
    ) -> Float[Array, "B S D"]:
        """Visual tokens in the compute type, zeros at text and padding.

        Callers that make `intermediates` mutable get `fusion_weights` of the clips there.

        Args:
          patches: uint8, clip by clip; N is a multiple of the patches of a clip.
          layout: fields [B, S].

        Raises:
          LayoutError: patches that are not whole clips.
        """
        tokens, weights = self.fusion(self._encode(patches))
        if weights is not None:
            self.sow("intermediates", "fusion_weights", weights)
        x_BxNxD = tokens.reshape(*patches.shape[:2], self.config.hidden_size)
        return patches_at_tokens(x_BxNxD, layout)

    def fusion_weights(self, patches: Num[AnyArray, "B N K"]) -> Weights | None:
        """The weight of each encoder in each of the n = B * N / frame_patches clips, row by row.

        None where `model.merv.fusion` has no weights.
        """
        return self.fusion(self._encode(patches))[1]

    def _encode(self, patches: Num[AnyArray, "B N K"]) -> list[Float[Array, "n L D"]]:
        """The aligned and projected tokens of each encoder."""
        c, merv = self.config, self.config.merv
        if patches.shape[1] % c.frame_patches:
            raise LayoutError(
                f"{patches.shape[1]} patches are not whole clips of {c.frame_patches}, which MERV's"
                " encoders take"
            )
        clips = jnp.asarray(patches).reshape(-1, c.frame_patches * patches.shape[2])
        pictures = unpack(
            clips, all_views(merv, [encoder for _, encoder in c.encoders]), merv.slots
        )
        tokens = []
        for name, encoder in c.encoders:
            features = self._features(name, encoder, pictures)
            aligned = adaptive_average_pool_3d(features, merv.slots, merv.grid)
            tokens.append(getattr(self, f"projector_{name}")(aligned))
        return tokens

    def _features(
        self, name: str, encoder: TeacherConfig, pictures: Pictures
    ) -> Float[Array, "n T G G C"]:
        views = [pictures[view] for view in encoder_views(self.config.merv, encoder)]
        frames = jnp.stack(views, axis=2)  # [n, slots, frames of a slot, H, W, 3]
        frames = frames.reshape(frames.shape[0], -1, *frames.shape[3:])
        tower = getattr(self, f"tower_{name}")
        if self.is_initializing():  # one image or clip declares all parameters
            shape = getattr(tower(jnp.zeros(input_shape(encoder))), encoder.features).shape
            side, steps = math.isqrt(shape[-2]), frames.shape[1] // encoder.tubelet
            return jnp.zeros((frames.shape[0], steps, side, side, shape[-1]))
        # Apart from this module, because a loop over clips may not declare parameters in it.
        alone, variables = tower.unbind()
        return tower_features(alone, variables["params"], frames)


def unpack(clips: Num[Array, "n bytes"], views: tuple[View, ...], slots: int) -> Pictures:
    """The pictures of each view, cut from the pixels of n clips."""
    out, start = {}, 0
    for view in views:
        shape = (slots, view.size, view.size, 3)
        stop = start + math.prod(shape)
        out[view] = clips[:, start:stop].reshape(-1, *shape)
        start = stop
    return out
