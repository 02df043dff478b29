"""Decodes records into samples; every failure becomes a `Rejected`."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from elva_jax.config.merv import all_views
from elva_jax.config.schema import Config, DataConfig, ModelConfig, StageConfig
from elva_jax.config.serialize import typed
from elva_jax.data import conversation
from elva_jax.data.captions import Captions, RunCaptions
from elva_jax.data.chat_tokens import may_fit
from elva_jax.data.collate import CaptionSample
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.packing import RowCapacity, Sample, merges_before_bucket
from elva_jax.data.prompt_format import FORMATS
from elva_jax.data.safe_read import read_safely
from elva_jax.data.teacher_frames import NO_TEACHER, TeacherFrames, join
from elva_jax.errors import DataError, RecordError
from elva_jax.video.clip import ClipSettings, Visual, read_clip
from elva_jax.video.counts import Counts, count
from elva_jax.video.hybrid import Hybrid
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout
from elva_jax.video.merv import MervSettings
from elva_jax.video.read import read_frames

if TYPE_CHECKING:  # Inference imports `clip_settings` without Grain and TFDS.
    from elva_jax.data.mixture import Mixture


CAPTION_LETTERS = 1000  # of a token; the rest of a caption is cut off before it is tokenized


class Decoder(ABC):
    """Decodes a record into a sample; it never raises, because an exception would end the worker.

    Args:
      mixture: the opened sources.
      time_limit: seconds after which a record is skipped; 0: no limit.

    Attributes:
      settings: the values beyond the stage's data that the samples depend on, as JSON.
    """

    settings: dict[str, Any]

    def __init__(self, mixture: Mixture, time_limit: float):
        self.mixture = mixture
        self.time_limit = time_limit

    def __call__(self, position: tuple[int, int], rng: np.random.Generator) -> Any:
        """The sample of a record (source, index), or `Rejected`."""
        return read_safely(
            self.mixture.key(*position),
            self.time_limit,
            lambda: self.mixture.example(*position),
            lambda example: self.prepare(example, rng),
            " (data.time_limit)",
        )

    @abstractmethod
    def prepare(self, example: Example, rng: np.random.Generator) -> Any:
        """Decodes an example into a sample.

        Raises:
          ElvaError: the example cannot be used.
        """


def clip_settings(data: DataConfig, model: ModelConfig) -> ClipSettings:
    """The settings with which a stage reads clips for a model; see `ClipSettings`."""
    return ClipSettings(
        num_frames=data.num_frames,
        longest_edge=data.longest_edge,
        patch_size=model.patch_size,
        fps=data.fps,
        upscale=data.upscale,
        square=model.tower.image_size if model.tower else 0,
        merv=merv_settings(model) if model.encoders else None,
    )


def merv_settings(model: ModelConfig) -> MervSettings:
    """The frames that the encoders of a MERV see."""
    merv = model.merv
    return MervSettings(
        num_frames=merv.num_frames,
        slots=merv.slots,
        grid=merv.grid,
        copies=len(model.encoders) if merv.fusion == "sequence" else 1,
        views=all_views(merv, [encoder for _, encoder in model.encoders]),
        patch_values=model.patch_values,
    )


class ConversationDecoder(Decoder):
    """Decodes conversations into samples that are ready to be packed.

    Args:
      mixture: the opened sources.
      config: the configuration of the run.
      stage: the stage.
      tokenizer: a tokenizer with the tokens of `data.prompt_format`.
      teacher: the frames that teachers see.
    """

    def __init__(
        self,
        mixture: Mixture,
        config: Config,
        stage: StageConfig,
        tokenizer: PreTrainedTokenizerBase,
        teacher: TeacherFrames = NO_TEACHER,
    ):
        data, model = stage.data, typed(Config, config).model
        super().__init__(mixture, data.time_limit)
        self.tokenizer = tokenizer
        self.capacity = RowCapacity.of_stage(stage)
        self.merge_lines, self.merges = model.merge_lines, merges_before_bucket(stage, model)
        self.max_turns, self.system_prompt = data.max_turns, data.system_prompt
        self.form, self.captions = FORMATS[data.prompt_format], data.captions
        self.teacher = teacher
        self.plain, self.patch_values = clip_settings(data, model), model.patch_values
        self.hybrid = dataclasses.replace(
            self.plain,
            hybrid=Hybrid(
                high_frames=data.num_frames,
                low_frames=data.num_low_frames,
                high_edge=data.longest_edge,
                low_edge=data.low_longest_edge,
                policy=data.hybrid_policy,
            ),
        )
        self.hybrid_probability = data.hybrid_probability if data.num_low_frames else 0.0
        self.settings = {
            "merge_lines": model.merge_lines,
            "patch_size": model.patch_size,
            "floor": self.capacity.merged_tokens,  # the key in saved states
            "teacher_size": teacher.setting,
        }
        if self.plain.merv:
            self.settings["merv"] = self.plain.merv.as_json()

    def prepare(self, example: Example, rng: np.random.Generator) -> Sample:
        """Reads the media and lays out the conversation."""
        example = choose_turns(example, self.max_turns, rng)
        conversation.check(example)
        visuals = self.read_media(example, rng)
        return self.to_sample(*self.lay_out(example, [visual.clip for visual in visuals]), visuals)

    def read_media(self, example: Example, rng: np.random.Generator) -> list[Visual]:
        """Reads the media of an example, as the stage does."""
        return [
            read_clip(
                medium.source,
                self._choose_settings(medium, rng),
                name=_name_in_errors(medium, example.key),
                teacher_sizes=self.teacher.sizes,
                span=medium.span,
            )
            for medium in example.media
        ]

    def to_sample(self, layout: TokenLayout, counts: Counts, visuals: Sequence[Visual]) -> Sample:
        """A sample of a layout, whose media are the first ones of `visuals`."""
        patches = [visual.patches for visual in visuals]
        no_patches = np.zeros((0, self.patch_values), np.uint8)
        lengths = [len(visual.clip.grids) for visual in visuals]
        media = np.repeat(np.arange(len(visuals), dtype=np.int32), lengths)
        return Sample(
            layout=layout,
            patches=_concatenate(patches, no_patches)[: counts.patches],
            teacher_frames=join(
                [visual.teacher_frames for visual in visuals], self.teacher, counts.frames
            ),
            media=media[: counts.frames],
            counts=counts,
        )

    def _choose_settings(self, medium: Media, rng: np.random.Generator) -> ClipSettings:
        """The settings for one medium; a stage may read some of its videos at two resolutions."""
        if medium.kind == "image":
            return dataclasses.replace(self.plain, num_frames=1, fps=0.0)
        if medium.frames:
            return dataclasses.replace(self.plain, num_frames=medium.frames, fps=0.0)
        if self.hybrid_probability and rng.random() < self.hybrid_probability:
            return self.hybrid
        return self.plain

    def lay_out(self, example: Example, clips: list[Clip]) -> tuple[TokenLayout, Counts]:
        """Lays out the example; if it is too long, its last turns and their media are dropped."""
        example = self._without_long_turns(example)
        while True:
            parts = self._render(example, clips[: len(example.media)])
            layout = build_layout(parts, captions=self.captions)
            counts = count(layout, merge_lines=self.merge_lines, merges=self.merges)
            exceeded = self.capacity.exceeded_by(counts)
            if not exceeded:
                return layout, counts
            too_much_media = {"patches", "frames"} & set(exceeded)
            if (too_much_media and not conversation.has_markers(example)) or (
                len(example.turns) == 1
            ):
                raise DataError(f"one example exceeds the row's {' and '.join(exceeded)}")
            example = conversation.truncate(example, self._turns_that_may_fit(example, counts))

    def _without_long_turns(self, example: Example) -> Example:
        """Drops the last turns that cannot fit, before they are tokenized; not the first one."""
        texts = [example.system]
        for k, turn in enumerate(example.turns):
            texts += [turn.question, turn.answer]
            if not may_fit(self.capacity.tokens, *texts):
                if k == 0:
                    raise DataError("one example exceeds the row's tokens")
                return conversation.truncate(example, k)
        return example

    def _render(self, example: Example, clips: list[Clip]) -> list[Text | Clip]:
        """The example as the stage's `data.prompt_format` and `data.captions` say."""
        if self.captions:
            return conversation.render_caption(example, self.tokenizer, clips, self.form)
        system = example.system or self.system_prompt
        return conversation.render(example, self.tokenizer, clips, system, self.form)

    def _turns_that_may_fit(self, example: Example, counts: Counts) -> int:
        """Number of turns to keep so that the text of the dropped ones covers the excess.

        At least one turn is dropped, but never the first one.
        """
        if conversation.has_markers(example):
            return len(example.turns) - 1
        excess = max(
            counts.tokens - self.capacity.tokens, counts.merged_tokens - self.capacity.merged_tokens
        )
        turns = len(example.turns)
        while turns > 1:
            turns -= 1
            excess -= conversation.turn_tokens(example.turns[turns], self.tokenizer, self.form)
            if excess <= 0:
                break
        return turns


def _concatenate(arrays: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """Concatenates arrays; a single array is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate([empty, *arrays])


def _name_in_errors(medium: Media, key: str) -> str | None:
    """The name of a medium in error messages; one without a path is named by its record."""
    return key if isinstance(medium.source, bytes) else None


def choose_turns(example: Example, most: int, rng: np.random.Generator) -> Example:
    """Keeps at most `most` turns: random ones, or the first ones if order or markers matter."""
    if example.ordered or conversation.has_markers(example):
        return conversation.truncate(example, most)
    chosen: list[Turn] = []
    seen: set[str] = set()
    for k in rng.permutation(len(example.turns)):
        turn = example.turns[k]
        if len(chosen) < most and (not turn.about or turn.about not in seen):
            chosen.append(turn)
            seen.add(turn.about)
    return dataclasses.replace(example, turns=tuple(chosen))


class CaptionDecoder(Decoder):
    """Decodes pairs of clip and caption for a vision tower; the caption is a random turn's answer.

    Args:
      mixture: the opened sources.
      config: the configuration of the run.
      stage: the stage.
      tokenizer: the run's, whose `<|endoftext|>` ends a caption.
      captions: the tokens of captions; None: those of `tokenizer`.
    """

    def __init__(
        self,
        mixture: Mixture,
        config: Config,
        stage: StageConfig,
        tokenizer: PreTrainedTokenizerBase,
        captions: Captions | None = None,
    ):
        data, teacher = stage.data, config.teacher
        super().__init__(mixture, data.time_limit)
        length = teacher.text_length
        self.captions = captions or RunCaptions(tokenizer=tokenizer, length=length)
        self.num_frames, self.fps, self.side = data.num_frames, data.fps, teacher.image_size
        self.sees_clips = teacher.num_frames > 1
        self.most_letters = CAPTION_LETTERS * length
        self.settings = {"image_size": self.side, "text_length": length}

    def prepare(self, example: Example, rng: np.random.Generator) -> CaptionSample:
        """Reads the first medium as square frames, and tokenizes a caption.

        For a tower that sees clips, frames of a shorter medium are repeated.
        """
        example = choose_turns(example, 1, rng)
        conversation.check(example)
        if not example.media:
            raise RecordError(example.key, "has no video or image for the caption")
        caption = self.captions.ids(example.turns[0].answer.strip()[: self.most_letters])
        medium, size = example.media[0], (self.side, self.side)
        still = medium.kind == "image"
        frames = read_frames(
            medium.source,
            num_frames=1 if still else medium.frames or self.num_frames,
            fps=None if still or medium.frames else self.fps,
            transform=lambda frame: frame.at(size),
            name=_name_in_errors(medium, example.key),
            span=medium.span,
        )
        pixels = np.stack(frames.pixels)
        if self.sees_clips and len(pixels) < self.num_frames:
            pixels = pixels[np.arange(self.num_frames) * len(pixels) // self.num_frames]
        return CaptionSample(pixels=pixels, token_ids=np.asarray(caption, np.int32))
