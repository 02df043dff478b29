"""What each kind of stage minimises: L_gen + L_tube + L_con (paper, section 3.3), or the sigmoid loss that trains a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict

from elva_jax.config.schema import LoraConfig, ModelConfig, TeacherConfig
from elva_jax.config.serialize import typed
from elva_jax.models.build import config_from_dict, vision_tower
from elva_jax.models.elva import Elva, ElvaOutput, dummy_inputs, layer_blocks
from elva_jax.models.guidance import GuidanceHeads
from elva_jax.models.qwen2 import vocabulary_head
from elva_jax.models.towers.siglip import Siglip
from elva_jax.ops.pooling import adaptive_average_pool
from elva_jax.tasks import losses
from elva_jax.video.layout import Kind, TokenLayout

TEACHER_SCORES = (
    2**26
)  # attention scores of a row's frames in one layer of the teacher that may exist at once; more frames take turns
CHUNK_LOGITS = 2**25  # float32 logits of one row that may exist at once; longer rows are cut


class MergeMetrics(struct.PyTreeNode):
    """Scalars over a batch after one merging layer."""

    kept: jax.Array  # share of the batch's patches that are left
    forced: jax.Array  # merges that only the bucket asked for
    overflow: jax.Array  # tokens that did not fit into the bucket; must be 0
    padding: jax.Array  # share of the bucket that is empty


class Objective(NamedTuple):
    """A stage's trainable parameters and its loss."""

    init: Callable[[jax.Array], Any]  # key -> boxed parameters, fresh
    loss: Callable[
        [Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]
    ]  # (params, frozen, batch) -> (loss, metrics)
    prepare: Callable[
        [Any], Any
    ]  # what must be known of the whole batch before it is cut into micro-batches
    counts: dict[str, int]  # sizes of logical axes that parameters do not show, for sharding


def make_objective(config: ConfigDict, stage_name: str) -> Objective:
    """The objective of a stage of either kind."""
    stage = config.stages[stage_name]
    return (
        teacher_objective(config) if stage.kind == "teacher" else elva_objective(config, stage_name)
    )


def guided(stage: ConfigDict) -> bool:
    """Whether a stage needs the teacher."""
    return stage.kind == "elva" and bool(stage.loss.tube or stage.loss.contrastive)


def elva_objective(config: ConfigDict, stage_name: str) -> Objective:
    """Params {"elva": ..., "guidance": ...} (the latter with a guidance loss only); frozen {"teacher": the vision tower}."""
    stage = config.stages[stage_name]
    lora = typed(LoraConfig, stage.optimizer.lora)
    model = Elva(config_from_dict(config.model, config.teacher), lora if lora.rank else None)
    teacher = vision_tower(config) if guided(stage) else None
    heads = (
        GuidanceHeads(config.teacher.hidden_size, stage.loss.temperature, config.model.dtype)
        if guided(stage)
        else None
    )

    def init(key: jax.Array):
        keys = jax.random.split(key)
        params = {"elva": model.init(keys[0], *dummy_inputs(model.config))["params"]}
        if heads is not None:
            hidden = jnp.zeros((1, 2, config.model.hidden_size))
            params["guidance"] = heads.init(keys[1], hidden, hidden)["params"]
        return params

    def loss(params, frozen, batch):
        variables = {"params": params["elva"]}
        out = model.apply(
            variables,
            batch["patches"],
            batch["layout"],
            merging=stage.merging,
            buckets=tuple(stage.merge_buckets),
        )
        metrics = token_metrics(model.config, batch["layout"], out, merging=stage.merging)
        total = jnp.float32(0)
        if stage.loss.generation:
            value, extra = _generation(
                out, vocabulary_head(params["elva"]["decoder"]), batch, config.model.vocab_size
            )
            total, metrics = (
                total + stage.loss.generation * value,
                {**metrics, "generation": value, **extra},
            )
        if heads is not None:
            value, extra = _guidance(
                stage.loss, teacher, frozen["teacher"], heads, params["guidance"], out, batch
            )
            total, metrics = total + value, {**metrics, **extra}
        return total, metrics

    return Objective(
        init,
        loss,
        _with_row_weight,
        {"heads": config.model.num_heads, "kv_heads": config.model.num_kv_heads},
    )


def token_metrics(
    config: ModelConfig, before: TokenLayout, out: ElvaOutput, *, merging: bool
) -> dict[str, Any]:
    """The number of tokens, the share of padding, and what is left of them after each merge.

    `merge/kept_mean` is the share of visual tokens that are left, averaged over the decoder's layers.
    """

    def count(*kinds: Kind) -> jax.Array:
        return sum(jnp.sum(before.kind == kind, dtype=jnp.float32) for kind in kinds)

    def share(left: jax.Array, total: jax.Array) -> jax.Array:  # 1 where there never was one
        left = jnp.sum(left).astype(jnp.float32)
        return jnp.where(total > 0, left / jnp.maximum(total, 1.0), 1.0)

    padding, size = count(Kind.PAD), before.kind.size
    metrics = {"tokens": size - padding, "padding": padding / size}
    if not merging:
        return metrics
    patches, visual = count(Kind.PATCH), count(Kind.FRAME, Kind.PATCH, Kind.LINE)
    metrics["merge"] = tuple(
        MergeMetrics(
            kept=share(stats.patches, patches),
            forced=jnp.sum(stats.forced).astype(jnp.float32),
            overflow=jnp.sum(stats.overflow).astype(jnp.float32),
            padding=jnp.sum(stats.padding) / jnp.sum(stats.padding + stats.survivors),
        )
        for stats in out.merges
    )
    layers = [
        piece.num_layers
        * (1.0 if piece.merge is None else share(out.merges[piece.merge].visual, visual))
        for piece in layer_blocks(config, merging=merging)
    ]
    return metrics | {"merge/kept_mean": sum(layers) / config.num_layers}


def _with_row_weight(batch):
    """Adds each row's share of the batch's answer weight, so that micro-batches add up to the loss of the whole batch."""
    weight_BxS = batch["layout"].loss_weight
    return {
        **batch,
        "row_weight": jnp.full(weight_BxS.shape[0], jnp.sum(weight_BxS) / weight_BxS.shape[0]),
    }


def _generation(out, head, batch, vocab_size: int):
    """Cross-entropy on the answers' tokens, which are text and so survive every merge."""
    length = out.hidden.shape[1]
    chunk = (
        0 if length * vocab_size <= CHUNK_LOGITS else max(CHUNK_LOGITS // vocab_size // 64, 1) * 64
    )  # so that mesh.context divides it
    value, extra = losses.generation_loss(
        out.hidden, head, out.layout.target, out.layout.loss_weight, chunk
    )
    weight = extra.pop("target_weight")
    if "row_weight" in batch:
        value = value * weight / jnp.maximum(jnp.sum(batch["row_weight"]), 1e-9)
    return value, extra


def _guidance(weights: ConfigDict, teacher, teacher_params, heads, head_params, out, batch):
    """The weighted sum of the tube-wise and the frame-wise term. Each averages over its own micro-batch; negatives come from it alone."""
    frames_BxFxHxWx3 = batch["teacher_frames"]
    features_BxFxGxGxC = teacher_features(teacher, teacher_params, frames_BxFxHxWx3)
    frame_hidden, valid_BxF = losses.gather_frames(
        out.hidden, out.layout, frames_BxFxHxWx3.shape[1]
    )
    student = heads.apply({"params": head_params}, out.hidden, frame_hidden)
    total, metrics = jnp.float32(0), {}
    if weights.tube:
        target_BxSxC = jax.vmap(adaptive_average_pool)(
            features_BxFxGxGxC, out.layout.frame, out.layout.cell
        )
        value, extra = losses.tube_loss(
            student.tube,
            target_BxSxC,
            out.layout,
            reduction=weights.tube_reduction,
            temporal=weights.tube_temporal,
        )
        total, metrics = total + weights.tube * value, {**metrics, "tube": value, **extra}
    if weights.contrastive:
        target_BxFxC = jnp.mean(features_BxFxGxGxC, axis=(2, 3))
        value, extra = losses.contrastive_loss(
            student.frame, target_BxFxC, valid_BxF, student.log_temperature
        )
        total, metrics = (
            total + weights.contrastive * value,
            {**metrics, "contrastive": value, **extra},
        )
    return total, metrics


def teacher_features(teacher, params, frames_BxFxHxWx3: jax.Array) -> jax.Array:
    """Penultimate features [B, F, G, G, C] of uint8 frames; no gradient flows through. Slots without a frame hold the features of black."""
    b, f, *size = frames_BxFxHxWx3.shape
    side, heads = teacher.config.grid, teacher.config.num_heads
    most = max(TEACHER_SCORES // (heads * side**4), 1)
    count = next(n for n in range(-(-f // most), f + 1) if f % n == 0)

    def see(frames_BxCxHxWx3):
        pixels = to_pixels(frames_BxCxHxWx3).reshape(-1, *size)
        features_MxPxC = jax.lax.stop_gradient(
            teacher.apply({"params": params}, pixels).penultimate
        )
        return features_MxPxC.reshape(b, -1, side, side, features_MxPxC.shape[-1])

    if count == 1:
        return see(frames_BxFxHxWx3)
    parts = jax.lax.map(see, frames_BxFxHxWx3.reshape(b, count, f // count, *size).swapaxes(0, 1))
    return parts.swapaxes(0, 1).reshape(b, f, side, side, -1)


def to_pixels(frames: jax.Array) -> jax.Array:
    """uint8 to float32 in [-1, 1], what every vision tower takes."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def teacher_objective(config: ConfigDict) -> Objective:
    """SigLIP's sigmoid loss between clips and captions; a clip's feature is the mean over its frames of the pooled features."""
    model = Siglip(typed(TeacherConfig, config.teacher), config.model.vocab_size)
    t = config.teacher

    def init(key: jax.Array):
        pixels = jnp.zeros((1, t.image_size, t.image_size, 3))
        return model.init(key, pixels, jnp.zeros((1, t.text_length), jnp.int32))["params"]

    def loss(params, frozen, batch):
        b, f, *size = batch["pixels"].shape
        pixels = to_pixels(batch["pixels"]).reshape(b * f, *size)
        pooled_MxC, text_BxC, log_scale, bias = model.apply(
            {"params": params}, pixels, batch["token_ids"]
        )
        mask_BxFx1 = batch["frame_mask"][..., None]
        frames_Bx1 = jnp.maximum(jnp.sum(mask_BxFx1, axis=1), 1)
        clip_BxC = (
            jnp.sum(jnp.where(mask_BxFx1, pooled_MxC.reshape(b, f, -1), 0.0), axis=1) / frames_Bx1
        )
        value, extra = losses.sigmoid_loss(clip_BxC, text_BxC, log_scale, bias)
        return value, {
            "tokens": jnp.sum(batch["mask"], dtype=jnp.float32),
            "sigmoid": value,
            **extra,
        }

    return Objective(init, loss, lambda batch: batch, {"heads": t.num_heads})
