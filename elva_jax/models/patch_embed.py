"""The video patch embedding (paper, section 3.1): raw pixels to tokens, without an encoder."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConfigError
from elva_jax.ops import linear
from elva_jax.ops.segment import segment_softmax
from elva_jax.video.layout import Kind, TokenLayout

KINDS = ("video", "naive")


class Slots(NamedTuple):
    """Where in the sequence each patch goes, int32 [N]; S (behind the end) for rows of the patch array that no token uses."""

    own: jax.Array  # the patch's own token
    frame: jax.Array  # the <FRAME> token of its frame
    line: jax.Array  # the <LINE> token of its row


def patch_slots(layout: TokenLayout, num_patches: int) -> Slots:
    """Turns an unbatched layout [S] around: from tokens that name a patch to patches that name their tokens."""
    length = layout.kind.shape[0]
    token_S = jnp.arange(length, dtype=jnp.int32)

    def place(chosen_S, key_S, size):
        """int32 [size + 1]: the chosen token of every key, `length` for keys without one."""
        table = jnp.full(size + 1, length, jnp.int32)
        return table.at[jnp.where(chosen_S, key_S, size)].set(jnp.where(chosen_S, token_S, length))

    own_N = place(layout.kind == Kind.PATCH, layout.patch_index, num_patches)[:num_patches]
    frame_token = place(layout.kind == Kind.FRAME, layout.frame, length)
    line_token = place(layout.kind == Kind.LINE, layout.row, length)
    source_N = jnp.minimum(own_N, length - 1)

    def of(table, name_S):
        return jnp.where(own_N < length, table[name_S[source_N]], length)

    return Slots(own_N, of(frame_token, layout.frame), of(line_token, layout.row))


class PatchEmbed(nn.Module):
    """uint8 patches and a layout to visual tokens of the decoder's width.

    A linear map K -> E; learned <FRAME> and <LINE> vectors, each plus what its query finds among the patches of its own frame or row by
    cross-attention (one E x E matrix each for queries, keys and values, shared by both, no output matrix); a linear map E -> D.
    The only bias is that of the first map: two linear maps in a row need no second one.
    The cost is linear in the number of tokens, whatever the mixture of grids.
    """

    config: ModelConfig

    def setup(self):
        width, dtype = self.config.patch_width, jnp.dtype(self.config.dtype)
        if self.config.patch_embed not in KINDS:
            raise ConfigError(
                f"model.patch_embed: {self.config.patch_embed!r} is unknown; use one of {', '.join(KINDS)}"
            )
        if width % self.config.patch_heads:
            raise ConfigError(
                f"model.patch_heads: {self.config.patch_heads} does not divide patch_width = {width}"
            )

        def kernel(name, shape, axes):
            return self.param(
                name,
                nn.with_logical_partitioning(nn.initializers.normal(0.02), axes),
                shape,
                jnp.float32,
            )

        self.proj = nn.Dense(
            width,
            dtype=dtype,
            dot_general=linear.dot_general,
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.normal(0.02), ("patch", "patch_width")
            ),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("patch_width",)),
        )
        self.out_proj = nn.Dense(
            self.config.hidden_size,
            use_bias=False,
            dtype=dtype,
            dot_general=linear.dot_general,
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.normal(0.02), ("patch_width", "embed")
            ),
        )
        self.frame = kernel("frame", (width,), ("patch_width",))
        self.line = kernel("line", (width,), ("patch_width",))
        if self.config.patch_embed == "video":
            self.q_kernel = kernel("q_kernel", (width, width), ("patch_width", None))
            self.k_kernel = kernel("k_kernel", (width, width), ("patch_width", None))
            self.v_kernel = kernel("v_kernel", (width, width), ("patch_width", None))

    def __call__(self, patches_BxNxK: jax.Array, layout: TokenLayout) -> jax.Array:
        """Visual tokens [B, S, D] in the compute type: zeros at text and padding.

        Args:
          patches_BxNxK: uint8 pixels; rows that no token names may hold anything.
          layout: integer fields [B, S].
        """
        pixels = patches_BxNxK.astype(jnp.float32) / 127.5 - 1.0
        patch_BxNxE = self.proj(pixels.astype(self.config.dtype))
        slots = jax.vmap(patch_slots, in_axes=(0, None))(layout, patches_BxNxK.shape[1])
        if self.config.patch_embed == "video":
            score_BxNx2xH, value_BxNxE = self._attention_inputs(patch_BxNxE)
            pooled_BxSxE = jax.vmap(_pool, in_axes=(0, 0, 0, 0, None))(
                patch_BxNxE, score_BxNx2xH, value_BxNxE, slots, layout.kind.shape[1]
            )
        else:
            pooled_BxSxE = jax.vmap(_place, in_axes=(0, 0, None))(
                patch_BxNxE, slots.own, layout.kind.shape[1]
            )
        frame = (layout.kind == Kind.FRAME)[..., None] * self.frame[None, None]
        line = (layout.kind == Kind.LINE)[..., None] * self.line[None, None]
        x_BxSxE = nn.with_logical_constraint(
            (pooled_BxSxE + frame + line).astype(self.config.dtype), ("batch", "seq", None)
        )
        return self.out_proj(x_BxSxE)

    def _attention_inputs(self, patch_BxNxE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores float32 [B, N, 2, H] of every patch under the <FRAME> and the <LINE> query, and values [B, N, E].

        There is one query a kind, so it is folded into the key matrix: patches meet two vectors a head instead of an E x E matrix.
        """
        width, heads = self.config.patch_width, self.config.patch_heads
        query_2xHxF = (jnp.stack([self.frame, self.line]) @ self.q_kernel).reshape(
            2, heads, width // heads
        )
        key_ExHxF = self.k_kernel.reshape(width, heads, width // heads)
        folded_Ex2xH = jnp.einsum("chf,ehf->ech", query_2xHxF, key_ExHxF) * (width // heads) ** -0.5
        score = jnp.einsum(
            "bne,ech->bnch",
            patch_BxNxE,
            folded_Ex2xH.astype(self.config.dtype),
            preferred_element_type=jnp.float32,
        )
        return score, linear.project(patch_BxNxE, self.v_kernel.astype(self.config.dtype))


def _place(patch_NxE: jax.Array, own_N: jax.Array, length: int) -> jax.Array:
    """float32 [S, E]: every patch at its own token."""
    return jax.ops.segment_sum(patch_NxE.astype(jnp.float32), own_N, length + 1)[:length]


def _pool(
    patch_NxE: jax.Array, score_Nx2xH: jax.Array, value_NxE: jax.Array, slots: Slots, length: int
) -> jax.Array:
    """float32 [S, E]: every patch at its own token, attended values at <FRAME> and <LINE> tokens; sums in float32.

    One reduction does it all, since a patch contributes to exactly three tokens. Unused rows go to a slot behind the end.
    """
    num_patches, heads = score_Nx2xH.shape[0], score_Nx2xH.shape[2]
    target_2N = jnp.concatenate([slots.frame, slots.line])
    score_2NxH = score_Nx2xH.swapaxes(0, 1).reshape(2 * num_patches, heads)
    weight_2xNxHx1 = segment_softmax(score_2NxH, target_2N, length + 1).reshape(
        2, num_patches, heads, 1
    )
    value_1xNxHxF = value_NxE.astype(jnp.float32).reshape(1, num_patches, heads, -1)
    attended_2NxE = (weight_2xNxHx1 * value_1xNxHxF).reshape(2 * num_patches, -1)
    source = jnp.concatenate([patch_NxE.astype(jnp.float32), attended_2NxE])
    return jax.ops.segment_sum(source, jnp.concatenate([slots.own, target_2N]), length + 1)[:length]
