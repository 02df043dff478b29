"""The video patch embedding (paper, section 3.1): raw pixels to tokens, without an encoder.

With pixels K = P * P * 3 of a patch, learned vectors f and l, and E x E matrices W_q, W_k, W_v:

    p_n    = W_in pixels_n + b                                              K -> E
    a(u)   = sum over n of softmax_n((W_q u) . (W_k p_n) / sqrt(E)) W_v p_n
    token  = W_out p_n              of a patch                              E -> D
           = W_out (f + a(f))       of <FRAME>, over the patches n of its frame
           = W_out (l + a(l))       of <LINE>, over the patches n of its row

    a frame of 2 x 3 patches:    <FRAME>  p  p  p  <LINE>  p  p  p  <LINE>
                                    ^     |--+--|-----^    |--+--|-----^
                                    +--------+----------------+

There is one query per kind of token, whatever the frame, so the cost is linear in the number of
tokens, for any mixture of grids. Patch embedding "naive" leaves out a(f) and a(l) (Table 3). W_out
has no bias: two linear maps in a row need only one.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Num

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.models.layers import dense, normal
from elva_jax.ops import linear
from elva_jax.ops.segment import segment_softmax
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import Kind, TokenLayout

KINDS = ("video", "naive")


class Slots(NamedTuple):
    """The tokens that each patch contributes to; S (beyond the end) for patches without a token."""

    own: Int32[Array, " N"]  # the patch's own token
    frame: Int32[Array, " N"]  # the <FRAME> token of its frame
    line: Int32[Array, " N"]  # the <LINE> token of its row


def patch_slots(layout: TokenLayout, num_patches: int) -> Slots:
    """Inverts an unbatched layout [S]: from the patch of a token to tokens of a patch."""
    length = layout.kind.shape[0]
    token_S = jnp.arange(length, dtype=jnp.int32)

    def tokens_by_key(
        chosen: Bool[Array, " S"], key: Int32[AnyArray, " S"], size: int
    ) -> Int32[Array, " K"]:
        """The chosen token of every key, `length` for keys without one."""
        table = jnp.full(size + 1, length, jnp.int32)
        return table.at[jnp.where(chosen, key, size)].set(jnp.where(chosen, token_S, length))

    own_N = tokens_by_key(layout.kind == Kind.PATCH, layout.patch_index, num_patches)[:num_patches]
    by_frame = tokens_by_key(layout.kind == Kind.FRAME, layout.frame, length)
    by_row = tokens_by_key(layout.kind == Kind.LINE, layout.row, length)
    source_N = jnp.minimum(own_N, length - 1)

    def of_patches(table, key_S):
        return jnp.where(own_N < length, table[key_S[source_N]], length)

    return Slots(own_N, of_patches(by_frame, layout.frame), of_patches(by_row, layout.row))


class PatchEmbed(nn.Module):
    """Patches and a layout to visual tokens of the decoder's width."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the parameters."""
        c, width = self.config, self.config.patch_width
        if c.patch_embed not in KINDS:
            raise ConfigError(
                f"model.patch_embed: {c.patch_embed!r} is unknown; use one of {', '.join(KINDS)}"
            )
        if width % c.patch_heads:
            raise ConfigError(
                f"model.patch_heads: {c.patch_heads} does not divide patch_width = {width}"
            )
        std = c.initializer_range
        self.proj = dense(width, ("patch", "patch_width"), c.dtype, std=std)
        axes = ("patch_width", "embed")
        self.out_proj = dense(c.hidden_size, axes, c.dtype, use_bias=False, std=std)
        delimiter = normal("patch_width", std=c.delimiter_initializer_range or std)
        self.frame = self.param("frame", delimiter, (width,), jnp.float32)
        self.line = self.param("line", delimiter, (width,), jnp.float32)
        if c.patch_embed == "video":
            self.q_kernel, self.k_kernel, self.v_kernel = (
                self.param(name, normal("patch_width", None, std=std), (width, width), jnp.float32)
                for name in ("q_kernel", "k_kernel", "v_kernel")
            )

    def __call__(
        self, patches: Num[AnyArray, "B N K"], layout: TokenLayout
    ) -> Float[Array, "B S D"]:
        """Visual tokens in the compute type, zeros at text and padding.

        Args:
          patches: uint8 pixels; patches that no token refers to may hold anything.
          layout: fields [B, S].
        """
        dtype, length = self.config.dtype, layout.kind.shape[1]
        mean, std = self.config.pixel_mean, self.config.pixel_std
        pixels = patches.astype(jnp.float32) / (255 * std) - mean / std
        patch_BxNxE = self.proj(pixels.astype(dtype))
        slots = jax.vmap(patch_slots, in_axes=(0, None))(layout, patches.shape[1])
        if self.config.patch_embed == "video":
            score_BxNx2xH, value_BxNxE = self._attention_inputs(patch_BxNxE)
            pooled_BxSxE = jax.vmap(_scatter_and_attend, in_axes=(0, 0, 0, 0, None))(
                patch_BxNxE, score_BxNx2xH, value_BxNxE, slots, length
            )
        else:
            pooled_BxSxE = jax.vmap(_scatter, in_axes=(0, 0, None))(patch_BxNxE, slots.own, length)
        frame = (layout.kind == Kind.FRAME)[..., None] * self.frame[None, None]
        line = (layout.kind == Kind.LINE)[..., None] * self.line[None, None]
        x_BxSxE = (pooled_BxSxE + frame + line).astype(dtype)
        return self.out_proj(nn.with_logical_constraint(x_BxSxE, ("batch", "seq", None)))

    def _attention_inputs(
        self, patch: Float[Array, "B N E"]
    ) -> tuple[Float32[Array, "B N 2 H"], Float[Array, "B N E"]]:
        """Scores of every patch under the queries of <FRAME> and <LINE>, and values.

        Each query is folded into the key matrix, (W_q u)^T W_k: patches are multiplied by two
        vectors per head instead of an E x E matrix.
        """
        dtype, heads = self.config.dtype, self.config.patch_heads
        width = self.config.patch_width // heads
        query_2xHxF = (jnp.stack([self.frame, self.line]) @ self.q_kernel).reshape(2, heads, width)
        key_ExHxF = self.k_kernel.reshape(-1, heads, width)
        folded_Ex2xH = jnp.einsum("chf,ehf->ech", query_2xHxF, key_ExHxF) * width**-0.5
        score = jnp.einsum(
            "bne,ech->bnch", patch, folded_Ex2xH.astype(dtype), preferred_element_type=jnp.float32
        )
        return score, linear.project(patch, self.v_kernel.astype(dtype))


def _scatter(
    patch: Float[Array, "N E"], own: Int32[Array, " N"], length: int
) -> Float32[Array, "S E"]:
    """Every patch at its own token."""
    return jax.ops.segment_sum(patch.astype(jnp.float32), own, length + 1)[:length]


def _scatter_and_attend(
    patch: Float[Array, "N E"],
    score: Float32[Array, "N 2 H"],
    value: Float[Array, "N E"],
    slots: Slots,
    length: int,
) -> Float32[Array, "S E"]:
    """Every patch at its own token, attended values at <FRAME> and <LINE>; summed in float32."""
    count, _, heads = score.shape
    target_2N = jnp.concatenate([slots.frame, slots.line])
    score_2NxH = score.swapaxes(0, 1).reshape(2 * count, heads)
    weight = segment_softmax(score_2NxH, target_2N, length + 1).reshape(2, count, heads, 1)
    value_1xNxHxF = value.astype(jnp.float32).reshape(1, count, heads, -1)
    attended_2NxE = (weight * value_1xNxHxF).reshape(2 * count, -1)
    # One sum does it all: a patch contributes to exactly three tokens. Unused rows are summed into
    # a slot beyond the end, which is cut off.
    source_3NxE = jnp.concatenate([patch.astype(jnp.float32), attended_2NxE])
    target_3N = jnp.concatenate([slots.own, target_2N])
    return jax.ops.segment_sum(source_3NxE, target_3N, length + 1)[:length]
