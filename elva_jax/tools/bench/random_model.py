"""Models with random weights, and videos with known redundancy, for benchmarks of speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.params import Weights, unstack_layers
from elva_jax.models.elva import Elva, dummy_inputs

# Share of the patches that change from frame to frame.
CONTENT = {"static": 0.0, "slow": 0.25, "typical": 0.5, "fast": 0.75, "noise": 1.0}


def random_weights(
    config: ModelConfig, seed: int = 0, decoder_of: Weights | None = None
) -> Weights:
    """Random weights on the device, in the types of inference, without a second copy.

    Args:
      config: the model.
      seed: of the random numbers.
      decoder_of: weights whose decoder is taken instead of another one.
    """

    def init(key):
        params = nn.unbox(Elva(config).init(key, *dummy_inputs(config)))["params"]
        return unstack_layers(config, params)

    shapes = jax.eval_shape(init, jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(shapes))))
    if decoder_of is not None:
        visual = jax.tree_util.tree_map_with_path(partial(_draw, keys), shapes.visual)
        return decoder_of._replace(visual=visual)
    return jax.tree_util.tree_map_with_path(partial(_draw, keys), shapes)


def _draw(keys: Iterator[jax.Array], path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name, key = jax.tree_util.keystr(path), next(keys)
    return (
        jnp.ones(leaf.shape, leaf.dtype)
        if "scale" in name
        else _normal(key, leaf.shape, leaf.dtype)
    )


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key, shape, dtype):
    return (0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)


def random_patches(
    grids: Sequence[tuple[int, int]], patch_width: int, content: str, seed: int = 0
) -> np.ndarray:
    """The patches of a video with these grids, uint8 [N, patch_width], frame by frame.

    A frame repeats the previous frame of its grid, except for a share of the patches (`CONTENT`),
    which become new noise.
    """
    rng, change = np.random.default_rng(seed), CONTENT[content]
    before: dict[tuple[int, int], np.ndarray] = {}
    frames = []
    for grid in grids:
        count = grid[0] * grid[1]
        frame = before.get(grid)
        new = np.ones(count, bool) if frame is None else rng.random(count) < change
        frame = np.zeros((count, patch_width), np.uint8) if frame is None else frame.copy()
        frame[new] = rng.integers(0, 256, (int(new.sum()), patch_width), np.uint8)
        before[grid] = frame
        frames.append(frame)
    return np.concatenate(frames)
