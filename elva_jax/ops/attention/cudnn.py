"""cuDNN's fused attention kernel, by way of `jax.nn.dot_product_attention`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from elva_jax.ops.attention.blocked import same_example
from elva_jax.utils.arrays import AnyArray


def obstacle(head_dim: int, dtype: jnp.dtype) -> str:
    """Why the kernel cannot run; empty where it can."""
    if jax.default_backend() != "gpu":
        return f"needs a GPU, not {jax.default_backend()}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs model.dtype bfloat16, not {dtype}"
    if head_dim > 128 or head_dim % 8:
        return f"needs model.head_dim to be a multiple of 8 up to 128, not {head_dim}"
    return ""


def fused_attention(
    q: Float[AnyArray, "B S H Dh"],
    k: Float[AnyArray, "B S K Dh"],
    v: Float[AnyArray, "B S K Dh"],
    segment: Int[AnyArray, "B S"],
    turn: Int[AnyArray, "B S"] | None,
    *,
    single: bool,
) -> Float[Array, "B S H Dh"]:
    """`packed_attention` by the kernel; `single` needs lengths instead of an S x S mask."""
    fused = partial(jax.nn.dot_product_attention, q, k, v, is_causal=True, implementation="cudnn")
    if single:
        length_B = jnp.sum(segment > 0, axis=1, dtype=jnp.int32)
        return fused(query_seq_lengths=length_B, key_value_seq_lengths=length_B)
    turns = None if turn is None else (turn, turn)
    return fused(mask=same_example(segment, segment, turns)[:, None])
