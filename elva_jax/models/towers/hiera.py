"""Hiera for video (arXiv 2306.00989), an encoder of MERV in place of ViViT.

    clip [T, H, W] -- convolution, stride (tubelet, s, s) --> tokens of width C / 8, plus positions
        stage 1   C / 8   attention within windows of 8 x 8 tokens of one step in time
        stage 2   C / 4   pooled 2 x 2; within the windows, now 4 x 4
        stage 3   C / 2   pooled 2 x 2 within the windows, now 2 x 2; then all tokens to all tokens
        stage 4   C       pooled 2 x 2: one token for each window; all to all

The first block of stages 2, 3 and 4 takes the maximum over 2 x 2 of its queries and of its residual
path, which a linear map widens; all other blocks are those of `towers.encoder`. One feature covers
`patch_size` = 8 s pixels along each side. Tokens are kept by window,

    [clips, windows, tokens of a window, width]     windows in order of time, row, column

and those of a window in such an order that the 2 x 2 that are pooled next lie along a leading axis.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.models.towers.common import (
    HEADS,
    ParamTable,
    VisionFeatures,
    from_heads,
    layer_norm,
    linear,
    refuse_other_clips,
    standardize,
    to_heads,
)
from elva_jax.models.towers.encoder import ACTIVATIONS, EncoderLayers, mlp
from elva_jax.ops.attention.cudnn import full_attention
from elva_jax.utils.arrays import AnyArray

MEAN, STD = (0.45,) * 3, (0.225,) * 3  # of RGB in [0, 1]
STAGES = 4
WIDENED = 2 ** (STAGES - 1)  # how much wider the last stage is than the first, and how much coarser
KERNEL = (3, 7, 7)  # frames, rows and columns that a token sees
LOCAL = 2  # stages whose blocks attend within windows


class Hiera(nn.Module):
    """The vision tower."""

    config: TeacherConfig
    dtype: str = "float32"  # compute type; parameters stay float32

    @nn.compact
    def __call__(self, pixels: Float[AnyArray, "n T H W 3"]) -> VisionFeatures:
        """Encodes clips of `config.num_frames` square frames with values in [-1, 1].

        Both features are outputs of blocks, by step in time and without a norm, as in the authors'
        intermediates: Hiera normalizes the mean of all tokens only, which is `pooled`.

        Raises:
          ConfigError: clips of another shape, or a configuration that is no Hiera.
        """
        c = self.config
        check(c)
        refuse_other_clips(pixels.shape, c, "Hiera")
        params, windows = ParamTable(self), c.slots * c.grid**2
        x = self._embed(params, standardize(pixels, MEAN, STD))
        before = x
        for i, depth in enumerate(c.stages):
            stage = stage_config(c, i)
            if i:
                x = PooledBlock(stage, local=i <= LOCAL, name=f"pool{i + 1}")(x)
            shape = x.shape
            # Windows are sequences of their own, or parts of one.
            x = x.reshape(-1, shape[2] * (1 if i < LOCAL else windows), shape[3])
            before, x = EncoderLayers(stage, depth - bool(i), name=f"stage{i + 1}")(x)
            x = x.reshape(shape)
        penultimate, last = (
            y.reshape(len(pixels), c.slots, c.grid**2, c.hidden_size) for y in (before, x)
        )
        params.norm("post_norm", c.hidden_size)
        pooled = layer_norm(jnp.mean(last, axis=(1, 2)), params, "post_norm")
        return VisionFeatures(penultimate, last, pooled)

    def _embed(
        self, params: ParamTable, pixels: Float[AnyArray, "n T H W 3"]
    ) -> Float[Array, "n U M C"]:
        """Overlapping tubes to tokens by window, with the positions of row, column and time."""
        c, width = self.config, self.config.hidden_size // WIDENED
        stride, side = c.patch_size // WIDENED, c.grid * WIDENED
        axes = (None, None, None, None, "embed")
        params.dense("patch", (*KERNEL, 3, width), axes, INIT, contracted=4)
        y = jax.lax.conv_general_dilated(
            jnp.asarray(pixels, self.dtype),
            jnp.asarray(params["patch_kernel"], self.dtype),
            window_strides=(c.tubelet, stride, stride),
            padding=[(k // 2, k // 2) for k in KERNEL],
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        space = params.add("space_embedding", (side**2, width), (None, "embed"), INIT)
        time = params.add("time_embedding", (c.slots, width), (None, "embed"), INIT)
        added = space.reshape(1, side, side, width) + time.reshape(-1, 1, 1, width)
        y = y + (added + params["patch_bias"].reshape(1, 1, 1, -1))[None].astype(self.dtype)
        y = nn.with_logical_constraint(y, ("batch", None, None, None, "embed"))
        # The lowest bit of row and column is pooled first.
        pattern = "n t (i u v w) (j x y z) c -> n (t i j) (w z v y u x) c"
        return rearrange(y, pattern, **dict.fromkeys("uvwxyz", 2))


INIT = nn.initializers.truncated_normal(0.02)


class PooledBlock(nn.Module):
    """The first block of a stage: half the width comes in, a quarter of the tokens goes out."""

    config: TeacherConfig  # of the stage
    local: bool  # whether tokens attend within their window

    @nn.compact
    def __call__(self, x: Float[Array, "n U M I"]) -> Float[Array, "n U m C"]:
        """A quarter of the tokens of each window, twice as wide: m = M / 4, C = 2 I."""
        c, width, inner = self.config, self.config.hidden_size, self.config.intermediate_size
        per_head = (c.num_heads, width // c.num_heads)
        params, n, windows = ParamTable(self), len(x), x.shape[1]
        params.norm("norm1", width // 2)
        params.norm("norm2", width)
        for name in ("query", "key", "value"):
            params.dense(name, (width // 2, *per_head), ("embed", *HEADS), INIT)
        params.dense("out", (*per_head, width), (*HEADS, "embed"), INIT, contracted=2)
        params.dense("skip", (width // 2, width), (None, "embed"), INIT)
        params.dense("fc1", (width, inner), ("embed", "mlp"), INIT)
        params.dense("fc2", (inner, width), ("mlp", "embed"), INIT)

        y = layer_norm(x, params, "norm1")
        query = pool(to_heads(y, params, "query"))
        key, value = (to_heads(y, params, name) for name in ("key", "value"))
        by_sequence = (n * windows, -1) if self.local else (n, -1)
        attended = full_attention(
            *(z.reshape(*by_sequence, *per_head) for z in (query, key, value))
        )
        x = pool(linear(y, params, "skip")) + from_heads(attended.reshape(query.shape), params)
        return x + mlp(layer_norm(x, params, "norm2"), params, ACTIVATIONS[c.activation])


def pool(x: Float[Array, "n U M *C"]) -> Float[Array, "n U m *C"]:
    """The maximum over the four tokens that are pooled next."""
    return jnp.max(x.reshape(*x.shape[:2], 4, -1, *x.shape[3:]), axis=2)


def stage_config(config: TeacherConfig, stage: int) -> TeacherConfig:
    """Widths and heads of the blocks of a stage from 0 on; the last has those of the tower."""
    part = 2 ** (STAGES - 1 - stage)
    names = ("hidden_size", "intermediate_size", "num_heads")
    return dataclasses.replace(config, **{name: getattr(config, name) // part for name in names})


def check(config: TeacherConfig) -> None:
    """Refuses a description that is no Hiera.

    Raises:
      ConfigError: the first key that does not fit, with the rule that it breaks.
    """
    c = config
    rules: dict[str, tuple[Any, bool, str]] = {
        "stages": (
            c.stages,
            len(c.stages) == STAGES and min(c.stages[1:]) > 1 and sum(c.stages) == c.num_layers,
            f"{STAGES} numbers, above 1 from the second on, that add up to teacher.num_layers ="
            f" {c.num_layers}",
        ),
        "patch_size": (c.patch_size, not c.patch_size % WIDENED, f"a multiple of {WIDENED}"),
        "image_size": (c.image_size, not c.image_size % c.patch_size, "whole patches"),
        "num_heads": (c.num_heads, not c.num_heads % WIDENED, f"a multiple of {WIDENED}"),
        "hidden_size": (
            c.hidden_size,
            not c.hidden_size % c.num_heads,
            f"a multiple of teacher.num_heads = {c.num_heads}",
        ),
        "intermediate_size": (
            c.intermediate_size, not c.intermediate_size % WIDENED, f"a multiple of {WIDENED}"
        ),
        "num_frames": (
            c.num_frames,
            c.num_frames > 1 and not c.num_frames % c.tubelet,
            f"above 1 and a multiple of teacher.tubelet = {c.tubelet}",
        ),
    }  # fmt: skip
    for name, (value, holds, rule) in rules.items():
        if not holds:
            raise ConfigError(f"teacher.{name} is {value}; a hiera needs {rule}")
