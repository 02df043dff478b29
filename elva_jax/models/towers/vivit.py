"""ViViT (arXiv 2103.15691, model 1): attention of all patches of a clip, an encoder of MERV.

    pixels -> tubes of `tubelet` frames -> [class token; tubes] + positions -> blocks -> norm
           -> the class token is pooled

Tubes are ordered by time, row, column. A clip of 32 frames of 224 pixels has 3,137 tokens, which
attend to each other in blocks (`ops.attention`). The mathematics is that of transformers'
`VivitModel`; see `towers.encoder` for the blocks.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    ParamTable,
    VisionFeatures,
    layer_norm,
    linear,
    position_embedding,
    prepend_class_token,
    refuse_other_clips,
)
from elva_jax.models.towers.encoder import EncoderLayers
from elva_jax.utils.arrays import AnyArray


class Vivit(nn.Module):
    """The vision tower."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels: Float[AnyArray, "n *T H W 3"]) -> VisionFeatures:
        """Encodes clips of `config.num_frames` square frames with values in [-1, 1].

        The features, by step in time, are transformers' hidden_states[-2] and last_hidden_state.
        The pooled one is the class token, as its classifier reads it.

        Raises:
          ConfigError: clips of another shape, or that tubes do not divide.
        """
        c, width = self.config, self.config.hidden_size
        if c.num_frames % c.tubelet:
            raise ConfigError(
                f"teacher.num_frames {c.num_frames} does not divide into tubes of teacher.tubelet"
                f" {c.tubelet} frames"
            )
        refuse_other_clips(pixels.shape, c, "ViViT")
        clips = jnp.asarray(pixels, self.dtype).reshape(-1, c.num_frames, *pixels.shape[-3:])
        params = ParamTable(self)
        shape = (c.tubelet * c.patch_size**2 * 3, width)
        params.dense("patch", shape, ("patch", "embed"), nn.initializers.lecun_normal())
        x = prepend_class_token(params, linear(tubeify(clips, c), params, "patch"))
        x = x + position_embedding(params, x.shape[1], width).astype(self.dtype)[None]
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        penultimate, x = EncoderLayers(c, c.num_layers, name="layers")(x)
        params.norm("post_norm", width)
        last = layer_norm(x, params, "post_norm")
        steps = () if c.num_frames == 1 else (c.slots,)
        by_step = (len(pixels), *steps, c.grid**2, width)
        pooled = last[:, 0]
        penultimate, last = (tokens[:, 1:].reshape(by_step) for tokens in (penultimate, last))
        return VisionFeatures(penultimate, last, pooled)


def tubeify(clips: Float[Array, "n T H W 3"], config: TeacherConfig) -> Float[Array, "n P K"]:
    """Tubes by time, row, column; inside a tube frames, rows, columns, channels."""
    edge = config.grid * config.patch_size
    return rearrange(
        clips[:, :, :edge, :edge],
        "n (t f) (i p) (j q) c -> n (t i j) (f p q c)",
        f=config.tubelet,
        p=config.patch_size,
        q=config.patch_size,
    )
