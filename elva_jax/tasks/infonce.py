r"""Symmetric InfoNCE between clips and captions (arXiv 1807.03748, as in CLIP), in float32.

    L = mean over i of -(log softmax_j(c_i t_j / T)_i + log softmax_j(t_i c_j / T)_i) / 2

c and t are normalized features of the B clips and captions of the whole batch, over all devices and
micro-batches. Each device has the logits of its own rows against all columns, a chunk at a time:

                 t_0 ........ t_B                      c_0 ........ c_B
    device 0   c |chunk, chunk|              device 0  t |chunk, chunk|
    device 1   c |chunk, chunk|              device 1  t |chunk, chunk|

Towers cannot encode a large batch at once, so gradients pass through a cache (arXiv 2101.06983):

    micro-batches -> towers -> features of all rows -> L -> dL/dc, dL/dt       no gradient of towers
    each micro-batch -> towers -> c, t -> gradient of sum(c dL/dc + t dL/dt)   = that of L

That is exact, because neither tower is random or lets rows of a batch see each other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from elva_jax.ops.normalize import l2_normalize
from elva_jax.parallel.sharding import activation_spec, mesh_axes
from elva_jax.tasks.losses import Terms

CHUNK_LOGITS = 2**25  # float32 logits of one direction that a device holds at once
LOWEST_TEMPERATURE = 0.01  # a learned one does not fall below it, as in CLIP


def infonce_loss(
    clip_BxC: jax.Array, text_BxC: jax.Array, log_temperature: jax.Array, chunk: int = 0
) -> tuple[jax.Array, Terms]:
    """The loss over all pairs of the global batch; pair (i, i) is positive.

    Args:
      clip_BxC: features of clips; normalized here.
      text_BxC: features of their captions; normalized here.
      log_temperature: scalar, learned.
      chunk: rows of a device whose logits exist at once, computed again in the backward pass; 0: as
        many as CHUNK_LOGITS allow.

    Returns:
      the loss; `match_accuracy`, the share of clips whose own caption is the most similar, and
      `caption_accuracy`, that of captions whose own clip is; and `temperature`.
    """
    count = clip_BxC.shape[0]
    clip_BxC, text_BxC = (l2_normalize(x.astype(jnp.float32)) for x in (clip_BxC, text_BxC))
    temperature = jnp.maximum(jnp.exp(log_temperature.astype(jnp.float32)), LOWEST_TEMPERATURE)
    rows = activation_spec("batch")
    axes = mesh_axes(*rows)  # none: XLA refuses a manual region that splits nothing

    def shard(clip, text, temperature):
        # Marked as varying outside of any loop, so that its gradient is summed over devices once.
        temperature = jax.lax.pcast(temperature, axes, to="varying")
        clips, texts = (jax.lax.all_gather(x, axes, tiled=True) for x in (clip, text))
        first = jax.lax.axis_index(axes) * clip.shape[0]
        return jax.lax.psum(_sums(clip, text, clips, texts, first, temperature, chunk), axes)

    if axes:
        none = PartitionSpec()
        run = jax.shard_map(
            shard, in_specs=(rows, rows, none), out_specs=none, axis_names=set(axes)
        )
        loss, hits, caption_hits = run(clip_BxC, text_BxC, temperature)
    else:
        both = (clip_BxC, text_BxC)
        loss, hits, caption_hits = _sums(*both, *both, jnp.int32(0), temperature, chunk)
    return loss / count, {
        "match_accuracy": hits / count,
        "caption_accuracy": caption_hits / count,
        "temperature": temperature,
    }


def _sums(
    clip_NxC: jax.Array,
    text_NxC: jax.Array,
    clip_BxC: jax.Array,
    text_BxC: jax.Array,
    first: jax.Array,
    temperature: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over N rows, numbered from `first`: the loss, and the hits of clips and of captions."""
    count = clip_NxC.shape[0]
    chunk = chunk or max(CHUNK_LOGITS // clip_BxC.shape[0], 1)
    number_N = first + jnp.arange(count, dtype=jnp.int32)

    @jax.checkpoint
    def one(part):
        clip, text, number, counts = part
        own = jnp.sum(clip * text, axis=-1) / temperature
        loss, hits = -2 * own, []
        for ours, theirs in ((clip, text_BxC), (text, clip_BxC)):
            logits = jnp.einsum("nc,bc->nb", ours, theirs, precision="highest") / temperature
            loss += jax.nn.logsumexp(logits, axis=1)
            hits.append(jnp.sum(counts * (jnp.argmax(logits, axis=1) == number)))
        return jnp.sum(counts * loss) / 2, *hits

    rows = (clip_NxC, text_NxC, number_N, jnp.ones(count, jnp.float32))
    if chunk >= count:
        return one(rows)
    pieces = -(-count // chunk)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, pieces * chunk - count), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(pieces, chunk, *x.shape[1:])

    loss, hits, caption_hits = jax.lax.map(one, tuple(map(split, rows)))
    return jnp.sum(loss), jnp.sum(hits), jnp.sum(caption_hits)


@jax.custom_vjp
def with_gradient(value: jax.Array, features: tuple, cotangents: tuple) -> jax.Array:
    """The value, whose gradient with respect to the features is `cotangents`, computed elsewhere.

    The features themselves are not read, so what makes them runs in the backward pass only.
    """
    del features, cotangents
    return value


def _keep(value: jax.Array, features: tuple, cotangents: tuple) -> tuple[jax.Array, tuple]:
    del features
    return value, cotangents


def _pass_on(cotangents: tuple, gradient: jax.Array) -> tuple:
    of_features = jax.tree.map(lambda x: gradient * x, cotangents)
    return jnp.zeros_like(gradient), of_features, jax.tree.map(jnp.zeros_like, cotangents)


with_gradient.defvjp(_keep, _pass_on)
