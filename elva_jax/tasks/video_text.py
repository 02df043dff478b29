"""Trains a teacher on videos: InfoNCE between clips and their captions (ELVA's Table 4).

frames [B, F, H, W, 3] -> any vision tower -> pooled over the clip -+
                                                                    +-> InfoNCE over all B pairs
captions [B, L]        -> SigLIP's text tower, or BERT -------------+

With `optimizer.accumulate` the towers see a part of the batch at a time and the loss all of it; see
`tasks.infonce` for the two passes that this takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.models import flops
from elva_jax.models.video_text import VideoText
from elva_jax.tasks.infonce import infonce_loss, with_gradient
from elva_jax.tasks.siglip import SiglipTask
from elva_jax.training.metrics import Metrics
from elva_jax.training.step import join_rows, split_rows
from elva_jax.training.task import Content, TrainedMatrices


class VideoTextTask(SiglipTask):
    """Params are `vision`, `text`, and `contrast`: linear maps and the log temperature."""

    @property
    def part_sources(self) -> Mapping[str, str]:
        """The text tower has a source of its own; SigLIP's may be that of the vision tower."""
        tower = self.config.text_tower
        inherited = self.config.teacher.init_from if tower.kind == "siglip" else ""
        return {"text": tower.init_from or inherited}

    @property
    def logical_sizes(self) -> dict[str, int]:
        """Heads of both towers, which divide the same mesh axis."""
        heads = self.config.teacher.num_heads
        if self.config.text_tower.kind == "bert":
            heads = int(np.gcd(heads, self.config.text_tower.num_heads))
        return {"heads": heads}

    @property
    def tower_attention(self) -> float:
        """Of the vision tower alone: captions are short."""
        teacher, frames = self.config.teacher, self.stage.data.num_frames
        steps = frames // teacher.num_frames * teacher.slots
        together = (
            teacher.slots if teacher.kind == "vivit" else 1
        )  # steps that attend to each other
        tokens = together * teacher.grid**2
        each = 4.0 * tokens**2 * teacher.hidden_size
        return steps // together * teacher.num_layers * each

    @property
    def tower_passes(self) -> int:
        """One, one more to look ahead, and one more that the backward pass recomputes."""
        return 1 + (self.stage.optimizer.accumulate > 1) + self.stage.contrast.remat

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of both towers and of the maps."""
        shapes = jax.tree.map(lambda leaf: leaf.shape, self.batch_shapes())
        frames = max(self.config.teacher.num_frames, 1)
        return self._video_text.init(
            key,
            jnp.zeros((1, frames, *shapes["pixels"][2:]), jnp.uint8),
            jnp.ones((1, frames), bool),
            jnp.zeros((1, shapes["mask"][1]), jnp.int32),
            jnp.ones((1, shapes["mask"][1]), bool),
        )["params"]

    def features(self, params: Any, batch: Any) -> tuple[jax.Array, ...]:
        """Features [b, C] of the clips and captions of a batch, and the log temperature."""
        out: Any = self._video_text.apply(
            {"params": params},
            batch["pixels"],
            batch["frame_mask"],
            batch["token_ids"],
            batch["mask"],
        )
        return out

    def compare(
        self, clip_BxC: jax.Array, text_BxC: jax.Array, *scalars: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """InfoNCE of a whole batch, given its `features`, and its metrics."""
        (log_temperature,) = scalars
        return infonce_loss(clip_BxC, text_BxC, log_temperature)

    def loss(self, params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        """InfoNCE over the batch, or over the whole of which it is a part (`look_ahead`)."""
        del frozen
        tokens = jnp.sum(batch["mask"], dtype=jnp.float32)
        features = self.features(params, batch)
        if "whole" not in batch:
            value, terms = self.compare(*features)
            return value, {"tokens": tokens, "infonce": value, **terms}
        cotangents, scalars = batch["whole"]
        # All rows have the same values of these.
        of_temperature, terms = jax.tree.map(jnp.max, scalars)
        value = with_gradient(terms["infonce"], features, (*cotangents, of_temperature))
        return value, {"tokens": tokens, **terms}

    def look_ahead(self, params: Any, frozen: Any, batch: Any) -> Any:
        """Adds the gradients of the whole batch's loss with respect to the features of each row.

        The step averages gradients over micro-batches; these are scaled so that their mean is the
        gradient of the whole.
        """
        del frozen
        parts = self.stage.optimizer.accumulate

        def encode(rows: Any) -> tuple[jax.Array, jax.Array]:
            clip_bxC, text_bxC, *_ = self.features(params, rows)
            return clip_bxC, text_bxC

        features = join_rows(jax.lax.map(encode, split_rows(batch, parts)))
        features = [nn.with_logical_constraint(x_BxC, ("batch", None)) for x_BxC in features]
        log_temperature = params["contrast"]["log_temperature"]
        of_all = jax.value_and_grad(infonce_loss, (0, 1, 2), has_aux=True)
        (value, terms), (*of_features, of_temperature) = of_all(*features, log_temperature)
        count = batch["mask"].shape[0]
        scalars = jax.tree.map(
            lambda x: jnp.full(count, x), (of_temperature, {"infonce": value, **terms})
        )
        return {**batch, "whole": ([x_BxC * parts for x_BxC in of_features], scalars)}

    def flops(
        self, content: Content, metrics: Mapping[str, Any], matrices: TrainedMatrices
    ) -> float:
        """Both towers, forward and backward; nothing for the pass that looks ahead."""
        if self.config.text_tower.kind != "bert":
            return super().flops(content, metrics, matrices)
        teacher, tower = self.config.teacher, self.config.text_tower
        texts = content.frames / max(self.stage.data.num_frames, 1)
        text_tower = texts * tower.num_layers * flops.vision_layer(tower, teacher.text_length)
        return 3 * (flops.vision_tower(teacher, content.frames) + text_tower)

    @property
    def _video_text(self) -> VideoText:
        config = self.config
        return VideoText(
            config.teacher,
            config.text_tower,
            self.stage.contrast,
            config.text_tower.vocab_size or config.model.vocab_size,
        )
