"""The five Video-LLMs of `elva bench ttft`, all with the same decoder, and their measurement."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from elva_jax.config.merv import clip_tokens as merv_tokens
from elva_jax.config.schema import MervConfig, ModelConfig, TeacherConfig
from elva_jax.inference import decode
from elva_jax.inference.batching import Rows, build_rows, grid_length
from elva_jax.inference.params import Weights
from elva_jax.inference.prefill import Prefix, prefill
from elva_jax.inference.sampling import GREEDY
from elva_jax.models.elva import merging_of, with_merging
from elva_jax.ops.merging import NO_MERGING, MergeLayer, Merging
from elva_jax.tools.analysis.merv import ENCODERS, merv_on
from elva_jax.tools.analysis.paper import CLIP_L_336, EDGE, LOW_EDGE, MODELS, QWEN2_1_5B, QWEN2_7B
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
        """A video of this many frames; MERV reads as many as it always does."""
        if self.config.encoders:
            steps = merv_tokens(self.config.merv) // self.config.merv.grid**2
            return Clip((self.grid,) * steps, bare=True)
        grids = (self.grid,) * frames
        if self.low_grid:
            high = choose_high(frames - frames // 2, frames // 2)
            grids = tuple(self.grid if is_high else self.low_grid for is_high in high)
        return Clip(grids, bare=self.config.tower is not None)

    def tokens(self, frames: int) -> int:
        """Tokens of the prompt."""
        return HEADER + clip_tokens(self.clip(frames)) + QUESTION

    def question(self, frames: int, content: str, new_tokens: int) -> Question:
        """A question about a random video, whose answer has room for `new_tokens`."""
        return Question(self, frames, content, new_tokens)

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
        question = self.question(frames, content, new_tokens)

        def everything() -> Any:
            return question.rest(*question.first())

        if jax.devices()[0].memory_stats():
            # A device's high-water mark only rises, so the first run has to show it.
            peak = peak_bytes(everything)
        else:
            jax.block_until_ready(everything())  # compiles
            peak = peak_bytes(everything)
        seconds, speed = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            prefix, state = jax.block_until_ready(question.first())
            middle = time.perf_counter()
            jax.block_until_ready(question.rest(prefix, state))
            seconds.append(middle - start)
            speed.append(new_tokens / (time.perf_counter() - middle))
        return {
            "tokens": self.tokens(frames),
            "kept": kept_share(prefix),
            "ttft": spread(seconds),
            "tokens_per_second": float(np.median(speed)),
            "peak_bytes": None if peak is None else self.held_bytes() + peak,
        }

    def held_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights))


class Question:
    """A question about one random video; nothing is computed before a method is called."""

    def __init__(self, model: VideoLLM, frames: int, content: str, new_tokens: int):
        self._model, self._new_tokens = model, new_tokens
        config, clip = model.config, model.clip(frames)
        self._patch_width = config.patch_values
        self._patches = random_patches(clip.grids, self._patch_width, content)
        self._parts = (Text(tuple(range(HEADER))), clip)
        self._capacity = grid_length(new_tokens)
        self._sampling = GREEDY.params(config.vocab_size, (-1,))
        self._merging = merging_of(config) if model.merging else NO_MERGING

    def rows(self) -> Rows:
        """The prompt up to the question, on the host."""
        return build_rows(
            [self._parts],
            [self._patches],
            self._patch_width,
            frame_patches=self._model.config.frame_patches,
        )

    def prefill(self, rows: Rows | None = None) -> Prefix:
        """The prompt through the decoder, on the device."""
        model = self._model
        return prefill(model.config, model.weights, rows or self.rows(), self._merging)

    def feed_arguments(self, prefix: Prefix) -> tuple[Any, ...]:
        """The arguments of `decode.feed` for the question."""
        config, slots = self._model.config, QUESTION + self._capacity
        mask = np.zeros((1, 1, 0), bool)
        state = decode.new_state(config, prefix.length, 1, slots, mask, prefix.stretch)
        text = np.arange(QUESTION, dtype=np.int32).reshape(1, 1, -1)
        length = np.full((1, 1), QUESTION, np.int32)
        return config, self._model.weights, prefix.layers, state, text, length, self._sampling

    def first(self) -> tuple[Prefix, decode.DecodeState]:
        """All up to the first token of the answer."""
        prefix = self.prefill()
        return prefix, decode.feed(*self.feed_arguments(prefix))

    def rest(self, prefix: Prefix, state: decode.DecodeState) -> jax.Array:
        """The answer after the first token: [1, 1, capacity]."""
        return self.advance(prefix, state, self._new_tokens)[0]

    def advance(
        self, prefix: Prefix, state: decode.DecodeState, steps: int
    ) -> tuple[jax.Array, decode.DecodeState]:
        """`decode.advance` by so many tokens."""
        config, weights = self._model.config, self._model.weights
        return decode.advance(
            config, weights, prefix.layers, state, self._capacity, steps, self._sampling
        )


def kept_share(prefix: Prefix) -> float:
    """Share of the visual tokens left, averaged over the layers."""
    layers = np.asarray([block.stop - block.start for block in prefix.blocks])
    visual = int(prefix.length[0]) - HEADER
    return float((layers * (prefix.tokens[:, 0] - HEADER)).sum() / (layers.sum() * visual))


def paper_models(
    size: str, dtype: Dtype, only: Collection[str] = tuple(MODELS)
) -> dict[str, VideoLLM]:
    """The paper's sizes: frames of 336 px, low ones of 112 px, CLIP-ViT-L/14-336 as the encoder.

    MERV has its own four encoders.
    """
    decoder = dataclasses.replace({"1_5b": QWEN2_1_5B, "7b": QWEN2_7B}[size], dtype=dtype)
    return build(decoder, CLIP_L_336, merv_on(decoder), (EDGE, LOW_EDGE), only)


def small_models(dtype: Dtype, only: Collection[str] = tuple(MODELS)) -> dict[str, VideoLLM]:
    """Small models for a CPU, in the paper's proportions.

    Frames have 112 px and 21 tokens, or 64 tokens from the tower; low ones have 56 px. MERV has 256
    tokens for any video.
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
    merv = _merv(model, MervConfig(grid=4), tower, tuple(ENCODERS), num_frames=32)
    return build(model, tower, merv, (112, 56), only)


def tiny_models(dtype: Dtype, only: Collection[str] = tuple(MODELS)) -> dict[str, VideoLLM]:
    """The smallest models in which all of this happens, to see that a measurement works.

    MERV has an encoder of images and one of clips.
    """
    widths: Any = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 8, "patch_width": 8}
    counts: Any = {"num_layers": 4, "num_heads": 2, "num_kv_heads": 1}
    model = ModelConfig(vocab_size=64, patch_size=4, dtype=dtype, **widths, **counts)
    tower = TeacherConfig(
        image_size=12, patch_size=3, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2
    )
    tokens = MervConfig(num_frames=4, slots=2, grid=2)
    merv = _merv(model, tokens, tower, ("vivit", "siglip"), num_frames=4)
    return build(model, tower, merv, (12, 8), only)


def _merv(
    model: ModelConfig,
    merv: MervConfig,
    tower: TeacherConfig,
    names: Collection[str],
    *,
    num_frames: int,
) -> ModelConfig:
    """MERV on a decoder, its encoders as wide and deep as a tower.

    Args:
      model: the decoder.
      merv: its visual tokens.
      tower: whose sizes all encoders have.
      names: of its encoders.
      num_frames: of a clip that ViViT sees; LanguageBind sees a quarter of them, as published.
    """
    sizes = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_layers")
    shape: dict[str, Any] = {name: getattr(tower, name) for name in (*sizes, "num_heads")}
    shapes = dict.fromkeys(ENCODERS, shape | {"pretrained_image_size": 0, "dtype": model.dtype})
    shapes["vivit"] = shapes["vivit"] | {"num_frames": num_frames}
    shapes["languagebind"] = shapes["languagebind"] | {"num_frames": num_frames // 4}
    encoders = {name: dataclasses.replace(ENCODERS[name], **shapes[name]) for name in names}
    width = min(3072, 2 * model.hidden_size)
    return merv_on(model, dataclasses.replace(merv, fusion_width=width), encoders)


def build(
    model: ModelConfig,
    tower: TeacherConfig,
    merv: ModelConfig,
    edges: tuple[int, int],
    only: Collection[str] = tuple(MODELS),
) -> dict[str, VideoLLM]:
    """Models on one decoder, for square frames.

    Args:
      model: the decoder.
      tower: of the encoder-based model.
      merv: MERV on the same decoder.
      edges: in pixels, of all frames or of the high ones, and of the low frames of `merge_hr`.
      only: keys of `MODELS`; the weights of others are not made.
    """
    longest = max(model.max_position, 1 << 18)
    model, merv = (dataclasses.replace(each, max_position=longest) for each in (model, merv))
    rules = (
        MergeLayer(CUTS[0] * model.num_layers // 28),
        *(MergeLayer(cut * model.num_layers // 28, "both") for cut in CUTS[1:]),
    )
    free = with_merging(model, Merging(rules))
    based = dataclasses.replace(
        model, patch_size=tower.patch_size, patch_embed="encoder", tower=tower
    )
    weights = random_weights(free)
    grid, low = ((edge // model.patch_size,) * 2 for edge in edges)
    models = {
        "encoder_free": VideoLLM(config=free, weights=weights, grid=grid),
        "merge": VideoLLM(config=free, weights=weights, grid=grid, merging=True),
        "merge_hr": VideoLLM(config=free, weights=weights, grid=grid, low_grid=low, merging=True),
    }
    # All share one decoder, and differ only in the modules before it.
    baselines = {"encoder_based": (based, tower.grid), "merv": (merv, merv.merv.grid)}
    for name, (config, side) in baselines.items():
        if name in only:
            other = random_weights(config, decoder_of=weights)
            models[name] = VideoLLM(config=config, weights=other, grid=(side, side))
    return {name: models[name] for name in MODELS if name in only}
