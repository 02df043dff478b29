"""Guidance of a video LLM by one or several frozen teachers (paper, section 3.3).

    L = sum over teachers of weight (w_tube L_tube + w_con L_con)

    hidden ------------> tube head ---> L_tube (patches, averaged along time)
       +---------------> frame head --> L_con (<FRAME> tokens)
    teacher's frames --> tower, for each frame or each clip --> features -^ (targets of both)

Every teacher has heads and a temperature of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.config.schema import Config, StageConfig, TeacherConfig
from elva_jax.config.teachers import teachers_of
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.models import flops
from elva_jax.models.elva import ElvaOutput
from elva_jax.models.guidance import GuidanceHeads
from elva_jax.models.towers.build import make_tower
from elva_jax.models.towers.features import tower_features
from elva_jax.ops.pooling import adaptive_average_pool
from elva_jax.tasks import losses
from elva_jax.tasks.clips import clip_features
from elva_jax.training.metrics import Metrics
from elva_jax.training.task import Content


class Guidance:
    """The guidance of a stage.

    Parameters are {"tube": …, "frame": …, "log_temperature"} of the only teacher, or such a tree
    for each entry of `teachers`. Frozen trees are {name: the tower's parameters}.

    Args:
      config: the configuration of the run.
      stage: the stage.
    """

    def __init__(self, config: Config, stage: StageConfig):
        self.teachers = teachers_of(config)
        self.frames = TeacherFrames.of(self.teachers.values())
        self._loss, self._width = stage.loss, config.model.hidden_size
        self._named = bool(config.teachers)
        self._heads = {
            name: GuidanceHeads(teacher.hidden_size, stage.loss.temperature, config.model.dtype)
            for name, teacher in self.teachers.items()
        }

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of the heads, boxed with their logical axes."""
        keys = jax.random.split(key, len(self._heads)) if self._named else [key]
        hidden = jnp.zeros((1, 2, self._width))
        params = {
            name: heads.init(own, hidden, hidden)["params"]
            for own, (name, heads) in zip(keys, self._heads.items(), strict=True)
        }
        return params if self._named else next(iter(params.values()))

    def batch_shapes(self, rows: int, frames: int) -> dict[str, Any]:
        """Shapes of the arrays that a batch holds for the teachers."""
        out: dict[str, Any] = {
            "teacher_frames": {
                side: jax.ShapeDtypeStruct((rows, frames, side, side, 3), np.uint8)
                for side in self.frames.sizes
            }
        }
        if self.frames.media:
            out["teacher_media"] = jax.ShapeDtypeStruct((rows, frames), np.int32)
        return out

    def flops(self, content: Content) -> float:
        """Towers forward, heads forward and backward."""
        heads = sum(teacher.hidden_size for teacher in self.teachers.values())
        towers = sum(tower_flops(teacher, content) for teacher in self.teachers.values())
        return towers + 3 * 2.0 * content.tokens * self._width * heads

    def features(self, frozen: Any, batch: Any, name: str) -> jax.Array:
        """The features [B, F, G, G, C] of one teacher for every frame of the batch."""
        teacher = self.teachers[name]
        tower, frames_BxFxHxWx3 = make_tower(teacher), batch["teacher_frames"][teacher.image_size]

        def encode(frames: jax.Array) -> jax.Array:
            return tower_features(tower, frozen[name], frames)

        if teacher.num_frames == 1:
            return encode(frames_BxFxHxWx3)
        return clip_features(encode, frames_BxFxHxWx3, batch["teacher_media"], teacher.num_frames)

    def frame_features(
        self, params: Any, frozen: Any, out: ElvaOutput, batch: Any
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
        """Features that the contrastive loss compares: ours, theirs [B, F, C]; valid [B, F].

        Ours and theirs are normalized, by teacher.
        """
        frame_hidden, valid_BxF = self._frames(out, batch)
        ours, theirs = {}, {}
        for name, heads in self._heads.items():
            student: Any = heads.apply(
                {"params": self._own(params, name)}, out.hidden, frame_hidden
            )
            features_BxFxC = jnp.mean(self.features(frozen, batch, name), axis=(2, 3))
            ours[name] = losses.l2_normalize(student.frame.astype(jnp.float32))
            theirs[name] = losses.l2_normalize(features_BxFxC.astype(jnp.float32))
        return ours, theirs, valid_BxF

    def loss(
        self, params: Any, frozen: Any, out: ElvaOutput, batch: Any
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum over teachers and terms, and the metrics.

        With several teachers, `tube` and `contrastive` are sums by weight, and `METRIC/NAME` is
        that of one teacher.
        """
        frame_hidden, valid_BxF = self._frames(out, batch)
        total, sums, metrics = jnp.float32(0), dict[str, jax.Array](), dict[str, Any]()
        for name, teacher in self.teachers.items():
            own = {"params": self._own(params, name)}
            student: Any = self._heads[name].apply(own, out.hidden, frame_hidden)
            terms, extra = self._terms(
                student, self.features(frozen, batch, name), valid_BxF, out.layout
            )
            for term, value in terms.items():
                total += getattr(self._loss, term) * teacher.weight * value
                sums[term] = sums.get(term, 0) + teacher.weight * value
            suffix = f"/{name}" if self._named else ""
            metrics |= {key + suffix: value for key, value in {**terms, **extra}.items()}
        return total, metrics | sums if self._named else metrics

    def _terms(
        self, student: Any, features_BxFxGxGxC: jax.Array, valid_BxF: jax.Array, layout: Any
    ) -> tuple[dict[str, jax.Array], Metrics]:
        """The terms of one teacher that have a weight, and their metrics.

        Each averages over its own micro-batch, and takes its negatives from there.
        """
        weights, terms, metrics = self._loss, dict[str, jax.Array](), dict[str, Any]()
        if weights.tube:
            target_BxSxC = jax.vmap(adaptive_average_pool)(
                features_BxFxGxGxC, layout.frame, layout.cell
            )
            terms["tube"], extra = losses.tube_loss(
                student.tube,
                target_BxSxC,
                layout,
                reduction=weights.tube_reduction,
                temporal=weights.tube_temporal,
            )
            metrics |= extra
        if weights.contrastive:
            target_BxFxC = jnp.mean(features_BxFxGxGxC, axis=(2, 3))
            terms["contrastive"], extra = losses.contrastive_loss(
                student.frame, target_BxFxC, valid_BxF, student.log_temperature
            )
            metrics |= extra
        return terms, metrics

    def _own(self, params: Any, name: str) -> Any:
        """The parameters of one teacher's heads."""
        return params[name] if self._named else params

    def _frames(self, out: ElvaOutput, batch: Any) -> tuple[jax.Array, jax.Array]:
        """The hidden states of the <FRAME> tokens, and which frames exist."""
        frames = next(iter(batch["teacher_frames"].values())).shape[1]
        return losses.gather_frames(out.hidden, out.layout, frames)


def tower_flops(teacher: TeacherConfig, content: Content) -> float:
    """The forward pass of a tower over the frames or clips of some content."""
    clips = content.clips * teacher.num_frames
    return flops.vision_tower(teacher, clips if teacher.num_frames > 1 else content.frames)


def number_of_clips(batch: Mapping[str, Any]) -> float:
    """The videos and images in a batch for teachers of clips, 0 without such a teacher."""
    if "teacher_media" not in batch:
        return 0.0
    return float(np.sum(np.max(batch["teacher_media"], axis=1) + 1))
