"""The four Video-LLMs that `elva bench ttft` compares, all with one decoder, and how each is measured."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

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
from elva_jax.tools.bench.memory import peak_bytes
from elva_jax.tools.bench.random_model import random_patches, random_weights
from elva_jax.tools.bench.timing import spread
from elva_jax.video.hybrid import choose_high
from elva_jax.video.layout import Clip, Text, clip_tokens

QUESTION = 32  # text tokens behind the video
HEADER = 14  # text tokens before the video, as in a chat's system turn
# Where layers merge in 28 (docs/choices.md): a threshold, then threshold and half of what is left, twice.
CUTS = (2, 8, 14)


class VideoLLM(NamedTuple):
    """One model, with random weights."""

    config: ModelConfig
    weights: Weights
    grid: tuple[int, int]  # patches of a frame
    low_grid: tuple[int, int] | None  # of the half of the frames that are low; None: all are high
    merging: bool

    def clip(self, frames: int) -> Clip:
        """The video's frames."""
        high = (
            choose_high(frames - frames // 2, frames // 2)
            if self.low_grid
            else np.ones(frames, bool)
        )
        return Clip(
            tuple(self.grid if is_high else self.low_grid for is_high in high),
            bare=self.config.tower is not None,
        )

    def tokens(self, frames: int) -> int:
        """Tokens of a prompt."""
        return HEADER + clip_tokens(self.clip(frames)) + QUESTION

    def measure(self, frames: int, content: str, new_tokens: int, repeats: int) -> dict[str, Any]:
        """Seconds to the first token, tokens a second behind it, peak memory with the weights, and the share of visual tokens that is
        left on average over the layers."""
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
            question, length = (
                np.arange(QUESTION, dtype=np.int32).reshape(1, 1, -1),
                np.full((1, 1), QUESTION, np.int32),
            )
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
            "kept": self._kept(prefix, clip),
            "ttft": spread(seconds),
            "tokens_per_second": float(np.median(speed)),
            "peak_bytes": None if peak is None else held + peak,
        }

    @staticmethod
    def _kept(prefix: Prefix, clip: Clip) -> float:
        """Share of the visual tokens left, averaged over the layers."""
        layers = np.asarray([piece.stop - piece.start for piece in prefix.blocks])
        visual = int(prefix.length[0]) - HEADER
        return float((layers * (prefix.tokens[:, 0] - HEADER)).sum() / (layers.sum() * visual))


def paper_models(size: str, dtype: str) -> dict[str, VideoLLM]:
    """The paper's setting: 336 px frames, the low ones 112 px, CLIP-ViT-L/14-336 for the encoder-based model."""
    decoder = {"1_5b": QWEN2_1_5B, "7b": QWEN2_7B}[size]
    return build(dataclasses.replace(decoder, dtype=dtype), CLIP_L_336, EDGE, LOW_EDGE)


def small_models(dtype: str) -> dict[str, VideoLLM]:
    """For a CPU, in the paper's proportions: 112 px frames of 21 tokens, the low ones 56 px, and a
    tower that makes 64 tokens of a frame."""
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
    """The four models on one decoder: `edge` and `low_edge` are pixels of their square frames."""
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
    # One decoder for all: only what comes before it differs.
    other = random_weights(based)._replace(
        **{name: getattr(weights, name) for name in ("embed_tokens", "norm", "lm_head", "layers")}
    )
    grid, low = (edge // model.patch_size,) * 2, (low_edge // model.patch_size,) * 2
    return {
        "encoder_based": VideoLLM(based, other, (tower.grid, tower.grid), None, False),
        "encoder_free": VideoLLM(free, weights, grid, None, False),
        "merge": VideoLLM(free, weights, grid, None, True),
        "merge_hr": VideoLLM(free, weights, grid, low, True),
    }
