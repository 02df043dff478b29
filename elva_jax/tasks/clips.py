"""Features of the frames of videos from a tower that sees clips, such as ViViT or LanguageBind.

Each video or image is one clip of the tower's n frames, chosen evenly from the f frames that the
student sees of it, or with repetitions where these are fewer; an image is repeated n times. Frame
j of the clip is the student's frame floor((j + 1/2) f / n), and the student's frame i reads the
features of the tower's step in time floor((i + 1/2) T / f), which covers it. With f = 3, n = 8 and
a tubelet of 2, T = 4:

    frame of the clip        0  1  2  3  4  5  6  7
    the student's frame      0  0  0  1  1  2  2  2
    step in time             0  0  1  1  2  2  3  3       frames 0, 1, 2 read steps 0, 2, 3
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from elva_jax.utils.arrays import AnyArray

Encode = Callable[[jax.Array], jax.Array]  # uint8 [B, n, H, W, 3] -> [B, T, G, G, C]


def clip_features(
    encode: Encode,
    frames: UInt8[AnyArray, "B F H W 3"],
    media: Int[AnyArray, "B F"],
    num_frames: int,
) -> Float[Array, "B F G G C"]:
    """The features of every frame, of which those of one video are seen together.

    A loop takes the first video of all rows, then the second ones, so that memory does not grow
    with their number. It ends with the last video of the row that has the most.

    Args:
      encode: the tower.
      frames: the frames of packed rows.
      media: number of the video or image of each frame in its row, from 0; -1: no frame. The
        frames of one stand together.
      num_frames: n, frames of a clip.

    Returns:
      zeros for slots without a frame.
    """
    rows, count, *size = frames.shape
    clips = jax.ShapeDtypeStruct((rows, num_frames, *size), frames.dtype)
    features = jax.eval_shape(encode, clips)
    steps = features.shape[1]
    none = jnp.zeros((rows, count, *features.shape[2:]), features.dtype)

    def add(number: jax.Array, done: jax.Array) -> jax.Array:
        own_BxF = media == number
        first_Bx1 = jnp.argmax(own_BxF, axis=1, keepdims=True)
        length_Bx1 = jnp.sum(own_BxF, axis=1, keepdims=True)
        place_BxN = first_Bx1 + nearest(jnp.arange(num_frames)[None], num_frames, length_Bx1)
        new = encode(_take(jnp.asarray(frames), place_BxN))
        index_BxF = jnp.arange(count)[None] - first_Bx1
        step_BxF = nearest(index_BxF, jnp.maximum(length_Bx1, 1), steps)
        new = _take(new, jnp.clip(step_BxF, 0, steps - 1))
        return _over_batch(jnp.where(own_BxF[:, :, None, None, None], new, done))

    return jax.lax.fori_loop(0, jnp.max(media) + 1, add, _over_batch(none))


def nearest(index: Int[Array, "..."], count: AnyArray | int, others: AnyArray | int) -> jax.Array:
    """Which of `others` equal parts of a whole holds the middle of part `index` of `count`."""
    return (2 * index + 1) * others // (2 * count)


def _take(x: jax.Array, index_BxN: jax.Array) -> jax.Array:
    """Elements of the second axis, for each row of the first one its own."""
    return jax.vmap(lambda row, index: row[index])(x, index_BxN)


def _over_batch(x: jax.Array) -> jax.Array:
    return nn.with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1)))
