"""LanguageBind's video tower (arXiv 2310.01852): CLIP with temporal attention in every block.

    pixels -> [class token; patches] of each frame + positions -> norm -> blocks -> norm
           -> the mean of the frames' class tokens is pooled

Before its spatial attention, a block lets each position attend to itself in all T frames of a clip:

    x <- x + temporal_embedding                                  where T > 1
    x <- x + temporal_out(attention over T(temporal_norm(x)))    class tokens too, no MLP

See `towers.encoder` for the rest of a block. Frames of different clips never meet.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from elva_jax.config.schema import TeacherConfig
from elva_jax.models.towers.common import (
    Params,
    ParamTable,
    VisionFeatures,
    embed_patches,
    layer_norm,
    position_embedding,
    prepend_class_token,
    refuse_other_clips,
    run_layers,
    standardize,
)
from elva_jax.models.towers.encoder import (
    ACTIVATIONS,
    attention,
    block,
    declare_attention,
    declare_block,
)
from elva_jax.models.towers.eva_clip import MEAN, STD
from elva_jax.utils.arrays import AnyArray

EPS = 1e-5  # of all its norms


class LanguageBind(nn.Module):
    """The vision tower."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels: Float[AnyArray, "n *T H W 3"]) -> VisionFeatures:
        """Encodes clips of `config.num_frames` square frames.

        Values are in [-1, 1], as for SigLIP, and normalized here as CLIP does. Features of a clip
        have a step in time per frame; with num_frames = 1 pixels are images [n, H, W, 3]. The
        pooled feature is taken before CLIP's projection.

        Raises:
          ConfigError: clips of another shape.
        """
        c, width = self.config, self.config.hidden_size
        refuse_other_clips(pixels.shape, c, "LanguageBind")
        images = pixels.reshape(-1, *pixels.shape[-3:])
        params = ParamTable(self)
        normalized = standardize(images, MEAN, STD).astype(self.dtype)
        x = prepend_class_token(params, embed_patches(params, normalized, c, use_bias=False))
        x = x + position_embedding(params, x.shape[1], width).astype(self.dtype)[None]
        params.norm("pre_norm", width)
        x = layer_norm(x, params, "pre_norm", EPS)
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        penultimate, x = LanguageBindLayers(c, name="layers")(x)
        params.norm("post_norm", width)
        last = layer_norm(x, params, "post_norm", EPS)
        clips = pixels.shape[:-3]  # (n, T), or (n,) for images
        pooled = jnp.mean(last[:, 0].reshape(len(pixels), -1, width), axis=1)
        penultimate, last = (y[:, 1:].reshape(*clips, -1, width) for y in (penultimate, last))
        return VisionFeatures(penultimate, last, pooled)


class LanguageBindLayers(nn.Module):
    """The stack of blocks."""

    config: TeacherConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "m N C"]
    ) -> tuple[Float[Array, "m N C"], Float[Array, "m N C"]]:
        """The last block's input and output, for the m frames of all clips."""
        c, width, frames = self.config, self.config.hidden_size, self.config.num_frames
        params = ParamTable(self, c.num_layers)
        declare_block(params, c)
        params.norm("temporal_norm", width)
        declare_attention(params, c, "temporal_")
        if frames > 1:
            init = nn.initializers.normal(width**-0.5)
            params.add("temporal_embedding", (frames, width), (None, "embed"), init)
        spatial = partial(block, activation=ACTIVATIONS[c.activation], eps=EPS)

        def step(x, layer):
            return spatial(attend_over_time(x, layer, frames), layer)

        return run_layers(step, x, params)


def attend_over_time(
    x: Float[Array, "m N C"], params: Params, frames: int
) -> Float[Array, "m N C"]:
    """Attention of each of the N positions of a frame to itself in the other frames of its clip."""
    over_time = rearrange(x, "(n t) p c -> (n p) t c", t=frames)
    if frames > 1:
        over_time = over_time + params["temporal_embedding"].astype(x.dtype)[None]
    y = attention(layer_norm(over_time, params, "temporal_norm", EPS), params, "temporal_")
    return rearrange(over_time + y, "(n p) t c -> (n t) p c", p=x.shape[1])
