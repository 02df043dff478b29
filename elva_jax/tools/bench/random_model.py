"""Models with random weights and videos of known redundancy: what a benchmark of speed needs of either."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.params import Weights, unstack_layers
from elva_jax.models.elva import Elva, dummy_inputs

# Part of the patches that are new in every frame; the rest stays as it was in the frame before.
CONTENT = {"static": 0.0, "slow": 0.25, "typical": 0.5, "fast": 0.75, "noise": 1.0}


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Weights of the model's shapes on the device, in the types that inference keeps them in; nothing is held twice."""

    def init(key):
        return unstack_layers(
            config, nn.unbox(Elva(config).init(key, *dummy_inputs(config)))["params"]
        )

    shapes = jax.eval_shape(init, jax.random.key(seed))
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(shapes))))

    def draw(path, leaf):
        name, key = jax.tree_util.keystr(path), next(keys)
        if "scale" in name:
            return jnp.ones(leaf.shape, leaf.dtype)
        return (0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_patches(
    grids: Sequence[tuple[int, int]], patch_width: int, content: str, seed: int = 0
) -> np.ndarray:
    """uint8 [N, patch_width]: a video whose frames have these grids, frame by frame.

    Frames of one grid repeat the frame of that grid before them, except for a part of the patches (`CONTENT`), which are noise anew.
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
