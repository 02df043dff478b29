"""cuDNN's fused attention kernel, by way of `jax.nn.dot_product_attention`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from elva_jax.ops.attention.blocked import LONG, full_blocked_attention, same_example
from elva_jax.ops.attention.stand_in import stand_in
from elva_jax.utils.arrays import AnyArray


def obstacle(head_dim: int, dtype: jnp.dtype, backend: str = "") -> str:
    """Why the kernel cannot run on a backend, by default JAX's own; empty where it can."""
    backend = backend or jax.default_backend()
    if backend != "gpu":
        return f"needs a GPU, not {backend}"
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
    """`packed_attention` by the kernel.

    A batch whose rows are one example each needs lengths instead of an S x S mask, which is several
    times faster. With `single` this is promised, otherwise it is looked up at run time.
    """
    if single:
        return _by_length(q, k, v, segment)
    alone = jnp.all(segment <= 1) & jnp.all(segment[:, 1:] <= segment[:, :-1])
    if turn is None:
        turn = jnp.zeros_like(segment)
    # With one turn alone, all that comes before a token is its own.
    alone &= jnp.all(turn <= 1) & jnp.all((turn[:, 1:] >= turn[:, :-1]) | (segment[:, 1:] == 0))
    return jax.lax.cond(alone, _padded, _by_mask, q, k, v, segment, turn)


def full_attention(
    q: Float[AnyArray, "B Q H Dh"], k: Float[AnyArray, "B S K Dh"], v: Float[AnyArray, "B S K Dh"]
) -> Float[Array, "B Q H Dh"]:
    """Attention of all queries to all keys, by the kernel where it can run.

    Elsewhere long sequences are attended block by block: scores of all pairs would not fit. In
    float16, in which the plan compiles trained towers, the plan's stand-in takes its place.
    """
    replacement = stand_in() if q.dtype == jnp.float16 else None
    if not obstacle(q.shape[-1], q.dtype, "gpu" if replacement else ""):
        if replacement:
            return replacement(q, k, v)
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if q.shape[1] > LONG:
        return full_blocked_attention(q, k, v)
    return small_attention(q, k, v)


def small_attention(
    q: Float[AnyArray, "B Q H Dh"],
    k: Float[AnyArray, "B S H Dh"],
    v: Float[AnyArray, "B S H Dh"],
    mask: Bool[AnyArray, "B #H #Q S"] | None = None,
) -> Float[Array, "B Q H Dh"]:
    """Attention of few queries or to few keys, whose scores are no burden.

    CPUs have no products of float16 with sums in float32, so that type is widened.
    """
    if q.dtype != jnp.float16:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, mask=mask).astype(jnp.float16)


_causal = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")


def _by_length(q: AnyArray, k: AnyArray, v: AnyArray, segment: AnyArray) -> Array:
    length_B = jnp.sum(segment > 0, axis=1, dtype=jnp.int32)
    return _causal(q, k, v, query_seq_lengths=length_B, key_value_seq_lengths=length_B)


def _padded(q: Array, k: Array, v: Array, segment: Array, turn: Array) -> Array:
    """The kernel leaves undefined values at padding; neither they nor their gradients get out."""
    del turn
    used_BxSx1x1 = (segment > 0)[:, :, None, None]
    q, k, v = (jnp.where(used_BxSx1x1, x, 0) for x in (q, k, v))
    length_at_least_1 = segment.at[:, 0].max(1)
    return jnp.where(used_BxSx1x1, _by_length(q, k, v, length_at_least_1), 0)


# The mask is made again in the backward pass: one per layer would not fit.
@partial(
    jax.checkpoint,
    policy=jax.checkpoint_policies.save_anything_except_these_names("attention_mask"),
)
def _by_mask(q: Array, k: Array, v: Array, segment: Array, turn: Array) -> Array:
    mask_Bx1xSxS = same_example(segment, segment, (turn, turn))[:, None]
    return _causal(q, k, v, mask=checkpoint_name(mask_Bx1xSxS, "mask"))
