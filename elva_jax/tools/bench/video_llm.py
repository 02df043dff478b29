"""The four Video-LLMs of `elva bench ttft`, all with the same decoder, and their measurement."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from elva_jax.config.schema import ModelConfig, TeacherConfig
from elva_jax.inference import decode
from elva_jax.inference.batching import build_rows, grid_length
from elva_jax.inference.params import Weights
from elva_jax.inference.prefill import Prefix, prefill
from elva_jax.inference.sampling import GREEDY
from elva_jax.models.elva import merging_of, with_merging
from elva_jax.ops.merging import NO_MERGING, MergeLayer, Merging
from elva_jax.tools.analysis.paper import CLIP_L_336, EDGE, LOW_EDGE, QWEN2_1_5B, QWEN2_7B
from elva_jax.tools.bench.arguments import Dtype
from elva_jax.tools.bench.memory import peak_bytes
from elva_jax.tools.bench.random_model import random_patches, random_weights
from elva_jax.tools.bench.timing import spread
from elva_jax.video.hybrid import choose_high
from elva_jax.video.layout import Clip, Text, clip_tokens

QUESTION = 32  # text tokens after the video
HEADER = 14  # text tokens before the video, as in a chat's system turn
# Merging layers of 28 (docs/choices.md): by threshold, then twice by threshold and ratio.
CUTS = (2, 8, 14)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoLLM:
    """One model with random weights."""

    config: ModelConfig
    weights: Weights
    grid: tuple[int, int]  # patches of a frame
    low_grid: tuple[int, int] | None = None  # of the low half of the frames; None: all are high
    merging: bool = False

    def clip(self, frames: int) -> Clip:
        """A video of this many frames."""
        grids = (self.grid,) * frames
        if self.low_grid:
            high = choose_high(frames - frames // 2, frames // 2)
            grids = tuple(self.grid if is_high else self.low_grid for is_high in high)
        return Clip(grids, bare=self.config.tower is not None)

    def tokens(self, frames: int) -> int:
        """Tokens of the prompt."""
        return HEADER + clip_tokens(self.clip(frames)) + QUESTION

    def measure(self, frames: int, content: str, new_tokens: int, repeats: int) -> dict[str, Any]:
        """Measures the answer to a question about one video.

        Args:
          frames: of the video.
          content: one of `CONTENT`.
          new_tokens: of the answer.
          repeats: timed runs.

        Returns:
          "tokens" of the prompt, "kept" share of the visual tokens on average over the layers,
          "ttft" seconds to the first token, "tokens_per_second" after it, and "peak_bytes" of
          memory including the weights.
        """
        clip = self.clip(frames)
        patch_width = self.config.patch_size**2 * 3
        patches = random_patches(clip.grids, patch_width, content)
        parts = (Text(tuple(range(HEADER))), clip)
        capacity = grid_length(new_tokens)
        sampling = GREEDY.params(self.config.vocab_size, (-1,))
        merging = merging_of(self.config) if self.merging else NO_MERGING

        def first() -> tuple[Prefix, decode.DecodeState]:
            rows = build_rows(
                [parts], [patches], patch_width, frame_patches=self.config.frame_patches
            )
            prefix = prefill(self.config, self.weights, rows, merging)
            state = decode.new_state(
                self.config, prefix.length, 1, QUESTION + capacity, np.zeros((1, 1, 0), bool)
            )
            question = np.arange(QUESTION, dtype=np.int32).reshape(1, 1, -1)
            length = np.full((1, 1), QUESTION, np.int32)
            return prefix, decode.feed(
                self.config, self.weights, prefix.layers, state, question, length, sampling
            )

        def rest(prefix: Prefix, state: decode.DecodeState) -> Any:
            return decode.advance(
                self.config, self.weights, prefix.layers, state, capacity, new_tokens, sampling
            )[0]

        def everything() -> Any:
            return rest(*first())

        jax.block_until_ready(everything())  # compiles
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights))
        peak = peak_bytes(everything)
        seconds, speed = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            prefix, state = jax.block_until_ready(first())
            middle = time.perf_counter()
            jax.block_until_ready(rest(prefix, state))
            seconds.append(middle - start)
            speed.append(new_tokens / (time.perf_counter() - middle))
        return {
            "tokens": self.tokens(frames),
            "kept": _kept(prefix),
            "ttft": spread(seconds),
            "tokens_per_second": float(np.median(speed)),
            "peak_bytes": None if peak is None else held + peak,
        }


def _kept(prefix: Prefix) -> float:
    """Share of the visual tokens left, averaged over the layers."""
    layers = np.asarray([block.stop - block.start for block in prefix.blocks])
    visual = int(prefix.length[0]) - HEADER
    return float((layers * (prefix.tokens[:, 0] - HEADER)).sum() / (layers.sum() * visual))


def paper_models(size: str, dtype: Dtype) -> dict[str, VideoLLM]:
    """The paper's sizes: frames of 336 px, low ones of 112 px, CLIP-ViT-L/14-336 as the encoder."""
    decoder = {"1_5b": QWEN2_1_5B, "7b": QWEN2_7B}[size]
    return build(dataclasses.replace(decoder, dtype=dtype), CLIP_L_336, EDGE, LOW_EDGE)


def small_models(dtype: Dtype) -> dict[str, VideoLLM]:
    """Small models for a CPU, in the paper's proportions.

    Frames have 112 px and 21 tokens, or 64 tokens from the tower; low ones have 56 px.
    """
    model = ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=1024,
        num_layers=14,
        num_heads=4,
        head_dim=64,
        patch_width=256,
        dtype=dtype,
    )
    tower = TeacherConfig(
        image_size=112, hidden_size=192, intermediate_size=768, num_layers=6, num_heads=3
    )
    return build(model, tower, 112, 56)


def build(
    model: ModelConfig, tower: TeacherConfig, edge: int, low_edge: int
) -> dict[str, VideoLLM]:
    """The four models on one decoder, for square frames of `edge` and `low_edge` pixels."""
    model = dataclasses.replace(model, max_position=max(model.max_position, 1 << 18))
    rules = (
        MergeLayer(CUTS[0] * model.num_layers // 28),
        *(MergeLayer(cut * model.num_layers // 28, "both") for cut in CUTS[1:]),
    )
    free = with_merging(model, Merging(rules))
    based = dataclasses.replace(
        model, patch_size=tower.patch_size, patch_embed="encoder", tower=tower
    )
    weights = random_weights(free)
    # All share one decoder, and differ only in the modules before it.
    other = random_weights(based)._replace(
        **{name: getattr(weights, name) for name in ("embed_tokens", "norm", "lm_head", "layers")}
    )
    grid, low = (edge // model.patch_size,) * 2, (low_edge // model.patch_size,) * 2
    return {
        "encoder_based": VideoLLM(config=based, weights=other, grid=(tower.grid, tower.grid)),
        "encoder_free": VideoLLM(config=free, weights=weights, grid=grid),
        "merge": VideoLLM(config=free, weights=weights, grid=grid, merging=True),
        "merge_hr": VideoLLM(config=free, weights=weights, grid=grid, low_grid=low, merging=True),
    }
