"""The factors of LoRA beside the projections of the decoder; see `ops.lora`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from elva_jax.config.schema import LoraConfig
from elva_jax.errors import ConfigError
from elva_jax.ops import linear
from elva_jax.utils.patterns import Matcher


def adapts(config: LoraConfig, projection: str) -> bool:
    """Whether a projection of the decoder's layers has factors."""
    matcher = Matcher("optimizer.lora.targets", ConfigError)
    return any(matcher.search(target, projection) for target in config.targets)


class Lora(nn.Module):
    """The term (alpha / R) x A B."""

    config: LoraConfig
    features: int
    axes: tuple[str, str]  # logical axes of the matrix that it adapts
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch {self.features}"]:
        """The factors' product with x, in the compute type."""

        def factor(name, init, shape, axes):
            boxed = nn.with_logical_partitioning(init, axes)
            value: Any = self.param(name, boxed, shape, jnp.float32)
            return value.astype(self.dtype)

        rank = self.config.rank
        a = factor("a", nn.initializers.lecun_normal(), (x.shape[-1], rank), (self.axes[0], None))
        b = factor("b", nn.initializers.zeros, (rank, self.features), (None, self.axes[1]))
        return linear.project(linear.project(x, a), b) * (self.config.alpha / rank)
