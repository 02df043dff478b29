"""Trains a teacher: SigLIP's sigmoid loss between clips and their captions.

frames [B, F, H, W, 3] -> vision tower -> mean over a clip's frames -> [B, C] -+
                                                                               +-> sigmoid loss
captions [B, L]        -> text tower  ------------------------------> [B, C] -+
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.models import flops
from elva_jax.models.towers.common import to_pixels
from elva_jax.models.towers.siglip import Siglip
from elva_jax.tasks import losses
from elva_jax.tasks.base import ModelTask
from elva_jax.training.metrics import Metrics
from elva_jax.training.task import Content, TrainedMatrices, over_processes


class SiglipTask(ModelTask):
    """Params are SigLIP's tree: `vision`, `text`, and the scale and bias of the logits."""

    exports = "vision"

    @property
    def init_from(self) -> str:
        """The teacher's `init_from`."""
        return self.config.teacher.init_from

    @property
    def row_tokens(self) -> int:
        """Length of a caption."""
        return self.config.teacher.text_length

    @property
    def logical_sizes(self) -> dict[str, int]:
        """Heads, which the flat kernels of the projections do not show."""
        return {"heads": self.config.teacher.num_heads}

    def batch_shapes(self) -> dict[str, Any]:
        """Shapes of clips and captions."""
        teacher, rows, frames = (
            self.config.teacher,
            self.stage.batch_size,
            self.stage.data.num_frames,
        )
        side, length = teacher.image_size, teacher.text_length
        return {
            "pixels": jax.ShapeDtypeStruct((rows, frames, side, side, 3), np.uint8),
            "frame_mask": jax.ShapeDtypeStruct((rows, frames), np.bool_),
            "token_ids": jax.ShapeDtypeStruct((rows, length), np.int32),
            "mask": jax.ShapeDtypeStruct((rows, length), np.bool_),
        }

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of both towers."""
        teacher = self.config.teacher
        pixels = jnp.zeros((1, teacher.image_size, teacher.image_size, 3))
        return self._model.init(key, pixels, jnp.zeros((1, teacher.text_length), jnp.int32))[
            "params"
        ]

    def features(self, params: Any, batch: Any) -> tuple[jax.Array, ...]:
        """Features [b, C] of the clips and captions of a batch, and the scalars of `compare`.

        A clip's feature is the mean over its frames.
        """
        b, f, *size = batch["pixels"].shape
        pixels = to_pixels(batch["pixels"]).reshape(b * f, *size)
        out: Any = self._model.apply({"params": params}, pixels, batch["token_ids"])
        pooled_MxC, text_BxC, log_scale, bias = out
        mask_BxFx1 = batch["frame_mask"][..., None]
        frames_Bx1 = jnp.maximum(jnp.sum(mask_BxFx1, axis=1), 1)
        pooled_BxFxC = jnp.where(mask_BxFx1, pooled_MxC.reshape(b, f, -1), 0.0)
        clip_BxC = jnp.sum(pooled_BxFxC, axis=1) / frames_Bx1
        return clip_BxC, text_BxC, log_scale, bias

    def compare(
        self, clip_BxC: jax.Array, text_BxC: jax.Array, *scalars: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a whole batch, given its `features`, and its metrics."""
        log_scale, bias = scalars
        return losses.sigmoid_loss(clip_BxC, text_BxC, log_scale, bias)

    def loss(self, params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        """The sigmoid loss over all pairs of the batch."""
        del frozen
        value, extra = self.compare(*self.features(params, batch))
        tokens = jnp.sum(batch["mask"], dtype=jnp.float32)
        return value, {"tokens": tokens, "sigmoid": value, **extra}

    def content(self, batch: Mapping[str, Any]) -> Content:
        """Frames of the clips, tokens of the captions."""
        frames, tokens = float(batch["frame_mask"].sum()), float(batch["mask"].sum())
        return over_processes(Content(tokens=tokens, frames=frames))

    def flops(
        self, content: Content, metrics: Mapping[str, Any], matrices: TrainedMatrices
    ) -> float:
        """Both towers, forward and backward."""
        teacher = self.config.teacher
        texts = content.frames / max(self.stage.data.num_frames, 1)
        text_tower = texts * teacher.text_layers * flops.vision_layer(teacher, teacher.text_length)
        return 3 * (flops.vision_tower(teacher, content.frames) + text_tower)

    @property
    def _model(self) -> Siglip:
        return Siglip(self.config.teacher, self.config.model.vocab_size)
