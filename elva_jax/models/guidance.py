"""Task heads of the video guidance supervisor (paper, section 3.3).

    hidden state [D]                                                   teacher's feature [Ct]
    of a patch    -- linear "tube"  --> [Ct]  <-- tube-wise MSE -->    mean over the patch's cell
    of a <FRAME>  -- linear "frame" --> [Ct]  <-- contrastive   -->    mean over the frame

The losses themselves are in `tasks.losses`; the heads exist in training only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from elva_jax.utils.arrays import AnyArray


class GuidanceOutput(NamedTuple):
    """Features in the teacher's width, not normalized."""

    tube: Float32[Array, "B S Ct"]  # of every token; the tube-wise loss reads those of patches
    frame: Float32[Array, "B F Ct"]  # of the <FRAME> tokens
    log_temperature: Float32[Array, ""]  # of the contrastive loss


class GuidanceHeads(nn.Module):
    """Two linear heads and a learned temperature."""

    teacher_size: int  # Ct, width of the teacher's features
    temperature: float = 0.07  # initial temperature of the contrastive loss
    dtype: str = "float32"  # compute type of the products

    @nn.compact
    def __call__(
        self, hidden: Float[AnyArray, "B S D"], frame_hidden: Float[AnyArray, "B F D"]
    ) -> GuidanceOutput:
        """Projects the decoder's output at every token, and at the `<FRAME>` tokens."""

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

        initial = nn.initializers.constant(math.log(self.temperature))
        log_temperature = self.param("log_temperature", initial, ())
        return GuidanceOutput(
            tube=head("tube")(hidden).astype(jnp.float32),
            frame=head("frame")(frame_hidden).astype(jnp.float32),
            log_temperature=log_temperature,
        )
