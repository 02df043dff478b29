"""Trains ELVA on answers about images and videos, with or without a teacher (paper, section 3.3).

L = w_gen L_gen + sum over teachers of weight (w_tube L_tube + w_con L_con)

patches, layout -> Elva -> hidden [B, C, D] -> vocabulary head -> L_gen (answers' tokens)
                                +------------> tasks/guidance --> L_tube, L_con of each teacher
teacher_frames -> frozen vision towers -> features --^
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from elva_jax.config.schema import Config, ModelConfig, TeacherConfig
from elva_jax.data.packing import RowCapacity
from elva_jax.errors import TrainingError
from elva_jax.models import flops
from elva_jax.models.elva import Elva, ElvaOutput, LayerBlock, dummy_inputs, layer_blocks
from elva_jax.models.qwen2 import vocabulary_head
from elva_jax.ops.lora import is_factor
from elva_jax.tasks import losses
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.guidance import Guidance, number_of_clips
from elva_jax.training.metrics import MergeMetrics, Metrics
from elva_jax.training.task import Content, TrainedMatrices, over_processes
from elva_jax.video.layout import Kind, TokenLayout

TOWER, PROJECTOR = "elva/patch_embed/tower", "elva/patch_embed/fc"  # of the encoder-based baseline


class VideoLlmTask(ModelTask):
    """Params are {"elva": …, "guidance": …}, the latter only with a guidance loss.

    Frozen trees are the vision towers by teacher with a guidance loss (`tasks.guidance`), otherwise
    none.
    """

    exports = "elva"

    def __init__(self, config: ConfigDict | Config, name: str):
        super().__init__(config, name)
        lora, model = self.stage.optimizer.lora, self.config.model
        self._model = Elva(model, lora if lora.rank else None)
        self._guidance = Guidance(self.config, self.stage)

    @property
    def teachers(self) -> dict[str, TeacherConfig]:
        """Those of the run, if the stage has a guidance loss."""
        guided = self.stage.loss.tube or self.stage.loss.contrastive
        return self._guidance.teachers if guided else {}

    @property
    def towers(self) -> dict[str, TeacherConfig]:
        """The tower of the encoder-based baseline, or MERV's encoders."""
        model = self.config.model
        merv = {f"{TOWER}_{name}/": encoder for name, encoder in model.encoders}
        return merv or ({f"{TOWER}/": model.tower} if model.tower else {})

    @property
    def init_from(self) -> str:
        """The run's `init_from`."""
        return self.config.init_from

    @property
    def row_tokens(self) -> int:
        """Length of a packed sequence."""
        return self.stage.data.seq_len

    @property
    def packs_rows(self) -> bool:
        """Whether short examples share a sequence."""
        return self.stage.data.pack

    @property
    def logical_sizes(self) -> dict[str, int]:
        """Heads, which the flat kernels of the projections do not show."""
        model = self.config.model
        return {"heads": model.num_heads, "kv_heads": model.num_kv_heads}

    def sequence_lengths(self) -> list[tuple[str, int]]:
        """The packed sequence, and what is left of it after each merging layer."""
        buckets = [("merge_buckets", bucket) for bucket in self.stage.merge_buckets]
        return [("data.seq_len", self.row_tokens), *buckets]

    def decoder_pieces(self) -> list[tuple[int, int]]:
        """The pieces between merging layers; without buckets merged tokens keep their places."""
        model, stage = self.config.model, self.stage
        blocks = blocks_with_lengths(
            model, self.row_tokens, stage.merge_buckets, merging=stage.merging
        )
        return [(block.num_layers, length) for block, length in blocks]

    def batch_shapes(self) -> dict[str, Any]:
        """Shapes of patches, layout and the teachers' frames."""
        row, size = RowCapacity.of_stage(self.stage), self.stage.batch_size

        def shape(*dims: int, dtype: Any = np.uint8) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((size, *dims), dtype)

        fields = zip(TokenLayout.shapes(row.tokens), TokenLayout.dtypes(), strict=True)
        width = self.config.model.patch_values
        layout: Any = [shape(*dims, dtype=dtype) for dims, dtype in fields]
        batch = {"patches": shape(row.patches, width), "layout": TokenLayout(*layout)}
        return batch | self._guidance.batch_shapes(size, row.frames) if self.teachers else batch

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of the model, and of the guidance heads if they are needed."""
        model_key, heads_key = jax.random.split(key)
        inputs = dummy_inputs(self.config.model)
        params = {"elva": self._model.init(model_key, *inputs)["params"]}
        if self.teachers:
            params["guidance"] = self._guidance.init(heads_key)
        return params

    def is_adapter(self, path: str) -> bool:
        """Whether it is a factor of the decoder's LoRA."""
        return is_factor(path)

    def is_outside(self, path: str) -> bool:
        """Whether it is in a head of the guidance."""
        return path.startswith("guidance/")

    def loss(self, params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the terms; terms of weight 0 are not computed."""
        weights = self.stage.loss
        out = self.forward(params, batch, merging=self.stage.merging)
        metrics = token_metrics(
            self.config.model,
            batch["layout"],
            out,
            merging=self.stage.merging,
            buckets=self.stage.merge_buckets,
        )
        total = jnp.float32(0)
        if weights.generation:
            head = vocabulary_head(params["elva"]["decoder"])
            value, extra = _generation(out, head, batch, self.config.model.vocab_size)
            total += weights.generation * value
            metrics |= {"generation": value, **extra}
        if self.teachers:
            value, extra = self._guidance.loss(params["guidance"], frozen, out, batch)
            total, metrics = total + value, metrics | extra
        return total, metrics

    def forward(self, params: Any, batch: Any, *, merging: bool) -> ElvaOutput:
        """The model's output; without the stage's own merging, sequences keep their length."""
        buckets = tuple(self.stage.merge_buckets) if merging and self.stage.merging else ()
        out: Any = self._model.apply(
            {"params": params["elva"]},
            batch["patches"],
            batch["layout"],
            merging=merging,
            buckets=buckets,
        )
        return out

    def prepare(self, batch: Any) -> Any:
        """Adds each row's share of the batch's answer weight.

        With it the losses of micro-batches add up to the loss of the whole batch.
        """
        weight_BxS = batch["layout"].loss_weight
        share = jnp.sum(weight_BxS) / weight_BxS.shape[0]
        return {**batch, "row_weight": jnp.full(weight_BxS.shape[0], share)}

    def check_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Refuses tokens that did not fit into a merge bucket, as they are lost."""
        if overflow := sum(layer.overflow for layer in metrics.get("merge", ())):
            raise TrainingError(
                f"{self.name}: step {step}: {overflow:.0f} tokens did not fit into the merge"
                f" bucket; raise stages.{self.name}.merge_buckets"
            )

    def content(self, batch: Mapping[str, Any]) -> Content:
        """Counted from the layout."""
        layout = batch["layout"]
        patches = float((layout.kind == Kind.PATCH).sum())
        tokens = float((layout.kind != Kind.PAD).sum())
        lengths = np.concatenate([np.bincount(row)[1:] for row in layout.segment]).astype(float)
        found = [np.unique(row[row >= 0], return_counts=True)[1] for row in layout.frame]
        frames = np.concatenate(found).astype(float)  # tokens of each
        pairs = (lengths * (lengths + 1) / 2).sum()
        if self.config.model.frame_attention == "bidirectional":
            pairs += (frames * (frames - 1) / 2).sum()
        return over_processes(
            Content(
                tokens=tokens,
                visual=tokens - float((layout.kind == Kind.TEXT).sum()),
                patches=patches,
                frames=float(len(frames)),
                pairs=float(pairs),
                clips=number_of_clips(batch),
            )
        )

    def flops(
        self, content: Content, metrics: Mapping[str, Any], matrices: TrainedMatrices
    ) -> float:
        """Forward, gradient of the inputs, and gradient of the parameters that are trained."""
        c, text = self.config.model, content.tokens - content.visual
        tokens = text + content.visual * metrics.get("merge/kept_mean", 1.0)
        pairs = content.pairs * (tokens / max(content.tokens, 1.0)) ** 2
        kept = min((layer.kept for layer in metrics.get("merge", ())), default=1.0)
        # A frozen part that nothing trained precedes needs no gradient of its inputs either.
        total = self._embedding_flops(content, matrices)
        table = "elva/decoder/embed_tokens" if c.tie_embeddings else "elva/decoder/lm_head"
        layers = 2.0 * tokens * c.num_layers * flops.layer_weights(c)
        total += (2 + matrices.share("elva/decoder/layers")) * layers
        total += (2 + matrices.share(table)) * flops.head(c, 1) * (text + content.visual * kept)
        total += 3 * c.num_layers * flops.layer_attention(c, pairs)
        total += 3 * 2.0 * tokens * matrices.size(self.is_adapter)
        return total + self._guidance.flops(content) if self.teachers else total

    def _embedding_flops(self, content: Content, matrices: TrainedMatrices) -> float:
        """Of the patch embedding, or of a baseline's towers and projectors."""
        model = self.config.model
        if model.encoders:
            return self._merv_flops(content, matrices)
        if model.tower is None:
            share = matrices.share("elva/patch_embed")
            forward = flops.patch_embedding(model, content.patches, content.visual)
            return (2 + share if share else 1) * forward
        tower, projector = matrices.share(TOWER), matrices.share(PROJECTOR)
        width, features = model.tower.hidden_size, model.hidden_size
        passes = 1 + (tower > 0) + projector
        return (2 + tower if tower else 1) * flops.vision_tower(
            model.tower, content.frames
        ) + passes * flops.projector(width, features, content.patches)

    def _merv_flops(self, content: Content, matrices: TrainedMatrices) -> float:
        """Of MERV's encoders, which no gradient reaches, projectors and fusion."""
        model = self.config.model
        front, clips = flops.merv_front(model), content.patches / model.frame_patches
        share = matrices.share("elva/patch_embed/projector")  # the fusion is trained with them
        trained = (1 + share) * front.projectors + (2 + share if share else 1) * front.fusion
        return clips * (sum(front.encoders.values()) + trained)

    def frame_features(
        self, params: Any, frozen: Any, out: ElvaOutput, batch: Any
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
        """See `Guidance.frame_features`."""
        return self._guidance.frame_features(params["guidance"], frozen, out, batch)


def blocks_with_lengths(
    config: ModelConfig, length: int, buckets: Sequence[int], *, merging: bool
) -> list[tuple[LayerBlock, int]]:
    """The decoder's blocks of layers, and the static length of the sequences in each.

    A bucket of 0, or none, keeps the length.
    """
    out = []
    for block in layer_blocks(config, merging=merging):
        if block.merge is not None and buckets:
            length = buckets[block.merge] or length
        out.append((block, length))
    return out


def token_metrics(
    config: ModelConfig,
    before: TokenLayout,
    out: ElvaOutput,
    *,
    merging: bool,
    buckets: Sequence[int] = (),
) -> Metrics:
    """The number of tokens, the share of padding, and what is left after each merge.

    `merge/kept_mean` is the share of visual tokens that are left, averaged over decoder layers.
    """

    def count(*kinds: Kind) -> jax.Array:
        return jnp.sum(jnp.isin(before.kind, jnp.asarray(kinds)), dtype=jnp.float32)

    def share(left: jax.Array, total: jax.Array) -> jax.Array:  # 1 where there never was one
        left = jnp.sum(left).astype(jnp.float32)
        return jnp.where(total > 0, left / jnp.maximum(total, 1.0), 1.0)

    padding, size = count(Kind.PAD), before.kind.size
    metrics: Metrics = {"tokens": size - padding, "padding": padding / size}
    if not merging:
        return metrics
    patches, visual = count(Kind.PATCH), count(Kind.FRAME, Kind.PATCH, Kind.LINE)
    rows, length = before.kind.shape
    merges: list[MergeMetrics] = []
    kept_layers: jax.Array | float = 0.0
    for block, tokens in blocks_with_lengths(config, length, buckets, merging=True):
        if block.merge is None:
            kept_layers += block.num_layers
            continue
        stats = out.merges[block.merge]
        kept_layers += block.num_layers * share(stats.visual, visual)
        merges.append(
            MergeMetrics(
                kept=share(stats.patches, patches),
                forced=jnp.sum(stats.forced).astype(jnp.float32),
                overflow=jnp.sum(stats.overflow).astype(jnp.float32),
                padding=jnp.sum(stats.padding).astype(jnp.float32) / (rows * tokens),
            )
        )
    return metrics | {"merge": tuple(merges), "merge/kept_mean": kept_layers / config.num_layers}


def _generation(
    out: ElvaOutput, head: Any, batch: Any, vocab_size: int
) -> tuple[jax.Array, Metrics]:
    """Cross-entropy on the answers' tokens, which are text and so survive every merge."""
    chunk = losses.head_chunk(out.hidden.shape[1], vocab_size)
    value, extra = losses.generation_loss(
        out.hidden, head, out.layout.target, out.layout.loss_weight, chunk
    )
    weight = extra.pop("target_weight")
    if "row_weight" in batch:
        value = value * weight / jnp.maximum(jnp.sum(batch["row_weight"]), 1e-9)
    return value, extra
