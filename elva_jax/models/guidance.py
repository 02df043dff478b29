"""Task heads of the video guidance supervisor (paper, section 3.3): from the decoder's width to the teacher's."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class GuidanceOutput(NamedTuple):
    """Features in the teacher's width, float32, not normalised."""

    tube: jax.Array  # [B, S, Ct] of every token; the tube-wise loss reads those of the patches
    frame: jax.Array  # [B, F, Ct] of the <FRAME> tokens
    log_temperature: jax.Array  # scalar, of the contrastive loss


class GuidanceHeads(nn.Module):
    """Two linear heads and a learned temperature, needed in training only."""

    teacher_size: int  # Ct, width of the teacher's features
    temperature: float = 0.07  # initial temperature of the contrastive loss
    dtype: str = "float32"  # compute type of the products

    @nn.compact
    def __call__(self, hidden_BxSxD: jax.Array, frame_hidden_BxFxD: jax.Array) -> GuidanceOutput:
        """Projects final-layer features.

        Args:
          hidden_BxSxD: the decoder's output at every token.
          frame_hidden_BxFxD: its output at the `<FRAME>` tokens (`training.losses.gather_frames`).
        """

        def head(name: str) -> nn.Dense:
            return nn.Dense(
                self.teacher_size,
                dtype=jnp.dtype(self.dtype),
                kernel_init=nn.with_logical_partitioning(
                    nn.initializers.lecun_normal(), ("embed", None)
                ),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,)),
                name=name,
            )

        log_temperature = self.param(
            "log_temperature", nn.initializers.constant(math.log(self.temperature)), ()
        )
        return GuidanceOutput(
            tube=head("tube")(hidden_BxSxD).astype(jnp.float32),
            frame=head("frame")(frame_hidden_BxFxD).astype(jnp.float32),
            log_temperature=log_temperature,
        )
