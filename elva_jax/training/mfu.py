"""Model FLOPs utilisation: what the model asks of the tokens that are there, over what the devices could do.

Counted as in PaLM (arXiv 2204.02311, appendix B): matrix products only, the backward pass as twice the forward one, nothing for what is
computed again to save memory, nothing for padding. Attention counts the pairs that the causal mask of each packed example leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from elva_jax.config.schema import TeacherConfig
from elva_jax.config.serialize import typed
from elva_jax.models import flops
from elva_jax.models.build import config_from_dict
from elva_jax.models.lora import is_factor
from elva_jax.tasks.objective import guided
from elva_jax.training.hardware import DEVICES
from elva_jax.utils.trees import flatten_paths
from elva_jax.video.layout import Kind

# FLOP/s of bfloat16; the first name that is in JAX's name of the device counts. The PCIe card of the H100 is slower than what a plan knows.
PEAKS = {
    "H200": DEVICES["h200"].half,
    "H100 PCIe": 756e12,
    "H100": DEVICES["h100"].half,
    "A100": DEVICES["a100-80g"].half,
}

TOWER, PROJECTOR = "elva/patch_embed/tower", "elva/patch_embed/fc"  # of the encoder-based baseline
MATRICES = ("/kernel", "/embed_tokens", "/lm_head")  # how the paths of what multiplies tokens end


@dataclasses.dataclass
class Content:
    """What a stretch of steps had in it, over all processes."""

    tokens: float = 0.0  # without padding
    visual: float = 0.0  # of them, those that stand for frames
    patches: float = 0.0
    frames: float = 0.0
    pairs: float = 0.0  # of query and key, before any merge

    def __add__(self, other: Content) -> Content:
        return Content(
            *(
                a + b
                for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
            )
        )


def content(batch: Mapping[str, Any]) -> Content:
    """Of this process's batch as NumPy arrays, times the number of processes, as all have as many rows."""
    if "layout" not in batch:
        frames = float(batch["frame_mask"].sum())
        counted = Content(tokens=float(batch["mask"].sum()), frames=frames)
    else:
        layout = batch["layout"]
        counts = {
            kind: float((layout.kind == kind).sum())
            for kind in (Kind.PAD, Kind.FRAME, Kind.PATCH, Kind.LINE)
        }
        lengths = np.concatenate([np.bincount(row)[1:] for row in layout.segment]).astype(float)
        counted = Content(
            tokens=layout.kind.size - counts[Kind.PAD],
            visual=counts[Kind.FRAME] + counts[Kind.PATCH] + counts[Kind.LINE],
            patches=counts[Kind.PATCH],
            frames=float(np.sum([len(np.unique(row[row >= 0])) for row in layout.frame])),
            pairs=float((lengths * (lengths + 1) / 2).sum()),
        )
    return Content(*(value * jax.process_count() for value in dataclasses.astuple(counted)))


class ModelFlops:
    """FLOPs of a stage's steps.

    Args:
      config: the run's.
      stage_name: one of its stages.
      labels: tree of the optimiser's labels, by which frozen parts have no gradient of their own.
      shapes: the parameters' shapes, the same tree.
    """

    def __init__(self, config: ConfigDict, stage_name: str, labels: Any, shapes: Any):
        self._stage, self._tower = (config.stages[stage_name], typed(TeacherConfig, config.teacher))
        self._guided = guided(self._stage)
        self._model = (
            config_from_dict(config.model, config.teacher) if self._stage.kind == "elva" else None
        )
        self._text = config.teacher.text_layers, config.teacher.text_length
        trained, shapes = flatten_paths(labels), flatten_paths(shapes)
        self._factors = sum(leaf.size for path, leaf in shapes.items() if is_factor(path))
        # Sizes of matrices by path, and how much of that is trained.
        self._matrices = {
            path: (leaf.size, leaf.size * (trained[path] != "frozen"))
            for path, leaf in shapes.items()
            if path.endswith(MATRICES)
        }

    def __call__(self, content: Content, reports: Mapping[str, Any]) -> float:
        """Of so much content, with the shares of visual tokens that stay after a merge from `reports` where tokens merge."""
        return self._elva(content, reports) if self._model else self._teacher(content)

    def _elva(self, content: Content, reports: Mapping[str, Any]) -> float:
        model = self._model
        c, text = model, content.tokens - content.visual
        tokens = text + content.visual * reports.get("merge/kept_mean", 1.0)  # mean over layers
        pairs = content.pairs * (tokens / max(content.tokens, 1.0)) ** 2
        layers = 2.0 * tokens * c.num_layers * flops.layer_weights(c)
        kept = min((layer.kept for layer in reports.get("merge", ())), default=1.0)
        head = flops.head(c, 1) * (text + content.visual * kept)
        # Forward, gradient of the inputs, gradient of the parameters; a frozen part with nothing trained before it goes forward alone.
        if model.tower is None:
            share = self._trained("elva/patch_embed")
            total = (2 + share if share else 1) * flops.patch_embedding(
                model, content.patches, content.visual
            )
        else:
            tower, projector = self._trained(TOWER), self._trained(PROJECTOR)
            total = (2 + tower if tower else 1) * flops.vision_tower(model.tower, content.frames)
            passes = 1 + (tower > 0) + projector
            total += passes * flops.projector(
                model.tower.hidden_size, c.hidden_size, content.patches
            )
        table = "elva/decoder/embed_tokens" if c.tie_embeddings else "elva/decoder/lm_head"
        total += (2 + self._trained("elva/decoder/layers")) * layers + (
            2 + self._trained(table)
        ) * head
        total += 3 * (c.num_layers * flops.layer_attention(c, pairs) + 2.0 * tokens * self._factors)
        if self._guided:
            total += flops.vision_tower(self._tower, content.frames)
            total += 3 * 2.0 * content.tokens * c.hidden_size * self._tower.hidden_size
        return total

    def _teacher(self, content: Content) -> float:
        layers, length = self._text
        texts = content.frames / max(self._stage.data.num_frames, 1)
        return 3 * (
            flops.vision_tower(self._tower, content.frames)
            + texts * layers * flops.vision_layer(self._tower, length)
        )

    def _trained(self, prefix: str) -> float:
        """The trained share of the matrices whose paths begin with a prefix."""
        sizes = [size for path, size in self._matrices.items() if path.startswith(prefix)]
        return sum(trained for _, trained in sizes) / max(sum(size for size, _ in sizes), 1)


def peak_flops(config: ConfigDict) -> float | None:
    """What all devices of the run could do in a second, or None where that is not known."""
    peak = config.log.peak_tflops * 1e12
    if not peak and config.model.dtype == "bfloat16":
        kind = jax.devices()[0].device_kind
        peak = next((value for name, value in PEAKS.items() if name in kind), 0.0)
    return peak * jax.device_count() or None


def memory_gib() -> float | None:
    """The most memory that was in use on one device of this process, where the device tells."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [
        entry["peak_bytes_in_use"] for entry in stats if entry and "peak_bytes_in_use" in entry
    ]
    return max(peaks) / 2**30 if peaks else None


class Speed:
    """What the steps since the last report did with their time; arguments as for `ModelFlops`."""

    def __init__(self, config: ConfigDict, stage_name: str, labels: Any, shapes: Any):
        self._flops, self._peak = ModelFlops(config, stage_name, labels, shapes), peak_flops(config)
        self._content, self._steps = Content(), 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """A step on this process's batch."""
        self._content, self._steps = self._content + content(batch), self._steps + 1

    def report(self, timing: dict[str, float], values: Mapping[str, Any]) -> dict[str, float]:
        """`timing` of the clock, and what it means for these means of a window; closes the stretch."""
        done, steps = self._content, self._steps
        self._content, self._steps = Content(), 0
        memory = memory_gib()
        out = timing if memory is None else {**timing, "memory_gib": memory}
        if timing:
            seconds = timing["seconds"] * steps
            work = self._flops(done, values) / seconds
            out |= {"tokens_per_second": done.tokens / seconds, "model_tflops": work / 1e12}
            out |= {"mfu": work / self._peak} if self._peak else {}
        return out
