"""Attention in which the tokens of a frame see each other in both directions.

A query attends to the keys of its example and turn up to its reach: the last token of its frame,
or itself where it belongs to none. Everything else is causal:

    frame  reach | key  0 1 2 3 4 5
     -1      0   |  0   # . . . . .
      0      2   |  1   # # # . . .
      0      2   |  2   # # # . . .
      1      4   |  3   # # # # # .
      1      4   |  4   # # # # # .
     -1      5   |  5   # # # # # #

After a merge the frame of a token is that of the survivor.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Int32

from elva_jax.errors import ConfigError
from elva_jax.ops.attention.blocked import blocked_attention
from elva_jax.ops.attention.dispatch import UNSPLIT
from elva_jax.parallel.sharding import mesh_axes
from elva_jax.utils.arrays import AnyArray


def frame_reach(frame: Int[AnyArray, "B S"]) -> Int32[Array, "B S"]:
    """The index of the last token of each token's frame; its own where `frame` is negative.

    The tokens of a frame stand side by side, as they do in every layout.
    """
    frame = jnp.asarray(frame)
    index = jnp.arange(frame.shape[1], dtype=jnp.int32)[None]
    following = jnp.concatenate([frame[:, 1:], jnp.full_like(frame[:, :1], -1)], axis=1)
    ends = (frame < 0) | (frame != following)
    return jax.lax.cummin(jnp.where(ends, index, frame.shape[1]), axis=1, reverse=True)


def frame_attention(
    q: Float[AnyArray, "B S H Dh"],
    k: Float[AnyArray, "B S K Dh"],
    v: Float[AnyArray, "B S K Dh"],
    segment: Int[AnyArray, "B S"],
    turn: Int[AnyArray, "B S"] | None,
    reach: Int[AnyArray, "B S"],
    *,
    implementation: str = "xla",
    split: PartitionSpec = UNSPLIT,
) -> Float[Array, "B S H Dh"]:
    """`packed_attention` with the reach of `frame_reach`; every block of queries meets all keys.

    Raises:
      ConfigError: another implementation than xla, or a mesh that splits the sequence.
    """
    check_frame_attention(implementation, split)
    return blocked_attention(q, k, v, segment, turn, single=False, reach=reach)


def check_frame_attention(implementation: str, split: PartitionSpec) -> None:
    """Raises ConfigError where attention in both directions cannot be computed."""
    sizes = jax.sharding.get_abstract_mesh().shape
    if implementation != "xla" or math.prod(sizes[name] for name in mesh_axes(split[1])) > 1:
        raise ConfigError(
            "model.frame_attention: bidirectional needs model.attention = xla, got"
            f" {implementation}, and a mesh that does not split sequences (mesh.context = 1)"
        )
