"""DINOv2 with registers (arXiv 2309.16588), an encoder of MERV and a teacher.

    pixels -> [class token; patches] + positions -> [class token; registers; patches]
           -> blocks with layer scale -> norm -> the class token is pooled

Registers have no positions. Positions were learned on the grid of `pretrained_image_size`; on
another one they are interpolated, bicubic with antialiasing. The mathematics is that of
transformers' `Dinov2WithRegistersModel`; see `towers.encoder` for the blocks.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    ParamTable,
    VisionFeatures,
    embed_patches,
    layer_norm,
    position_embedding,
    standardize,
)
from elva_jax.models.towers.encoder import EncoderLayers
from elva_jax.utils.arrays import AnyArray

# ImageNet's normalization of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Dinov2(nn.Module):
    """The vision tower."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels: Float[AnyArray, "n H W 3"]) -> VisionFeatures:
        """Encodes square images of `config.image_size` pixels.

        Values are in [-1, 1], as for SigLIP, and normalized here as for ImageNet. The features are
        transformers' hidden_states[-2], last_hidden_state and pooler_output.

        Raises:
          ConfigError: another image size.
        """
        c, size, width = self.config, self.config.image_size, self.config.hidden_size
        if pixels.shape[1:] != (size, size, 3):
            raise ConfigError(
                f"DINOv2 was given images of shape {pixels.shape[1:]};"
                f" teacher.image_size wants {(size, size, 3)}"
            )
        normalized = standardize(pixels, MEAN, STD)
        params, init = ParamTable(self), nn.initializers.normal(0.02)
        patches = embed_patches(params, normalized.astype(self.dtype), c)
        class_token = params.add("class_token", (1, width), (None, "embed"), init)
        position = position_embedding(params, 1 + pretrained_grid(c) ** 2, width)
        first = class_token + position[:1]
        if c.num_registers:
            registers = params.add("registers", (c.num_registers, width), (None, "embed"), init)
            first = jnp.concatenate([first, registers])
        of_patches = interpolate(position[1:].astype(jnp.float32), c.grid).astype(self.dtype)
        first = jnp.broadcast_to(first.astype(self.dtype)[None], (len(patches), *first.shape))
        x = jnp.concatenate([first, patches + of_patches[None]], axis=1)
        x = nn.with_logical_constraint(x, ("batch", None, "embed"))
        penultimate, x = EncoderLayers(c, c.num_layers, layer_scale=True, name="layers")(x)
        params.norm("post_norm", width)
        last = layer_norm(x, params, "post_norm")
        count = first.shape[1]
        return VisionFeatures(penultimate[:, count:], last[:, count:], last[:, 0])


def pretrained_grid(config: TeacherConfig) -> int:
    """Patches along a side of the images for which a DINOv2 has positions."""
    return (config.pretrained_image_size or config.image_size) // config.patch_size


def interpolate(position: Float32[AnyArray, "P C"], grid: int) -> Float32[Array, "{grid*grid} C"]:
    """Row-major positions of a square grid on another one; on the same one they are unchanged.

    As torch.nn.functional.interpolate with mode "bicubic", antialias=True, align_corners=False.
    """
    side = round(len(position) ** 0.5)
    if side == grid:
        return jnp.asarray(position)
    matrix = jnp.asarray(bicubic_matrix(side, grid))
    table = position.reshape(side, side, -1)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("iy,jx,yxc->ijc", matrix, matrix, table, precision=highest).reshape(
        grid * grid, -1
    )


def bicubic_matrix(size: int, target: int) -> Float32[np.ndarray, "{target} {size}"]:
    """Weights of `size` samples in each of `target` samples along an axis; each row sums to 1.

    Keys' kernel with a = -0.5, stretched by the factor of a reduction. Pixels are half-open cells,
    so that centers are at a half, and weights beyond the border are left out.
    """
    scale = size / target
    center_T = (np.arange(target) + 0.5) * scale
    distance_TxS = np.abs(np.arange(size)[None] + 0.5 - center_T[:, None]) / max(scale, 1.0)
    near = (1.5 * distance_TxS - 2.5) * distance_TxS**2 + 1
    far = ((-0.5 * distance_TxS + 2.5) * distance_TxS - 4) * distance_TxS + 2
    weight_TxS = np.where(distance_TxS < 1, near, np.where(distance_TxS < 2, far, 0))
    return (weight_TxS / weight_TxS.sum(axis=1, keepdims=True)).astype(np.float32)
