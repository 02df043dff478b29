"""One record to one packed-ready sample, in whichever process decodes; what goes wrong becomes a record of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.data import conversation
from elva_jax.data.example import Example, Media
from elva_jax.data.mixture import Mixture
from elva_jax.data.packing import Sample, budgets, merges_before_bucket, over
from elva_jax.data.safe_read import Rejected, attempt
from elva_jax.errors import DataError, RecordError
from elva_jax.video.hybrid import Hybrid, Reduced, reduce_frame, settle
from elva_jax.video.layout import Clip, Counts, build_layout, count
from elva_jax.video.picture import Picture
from elva_jax.video.read import read_frames
from elva_jax.video.resize import patchify


class Views(NamedTuple):
    """What is kept of a decoded frame."""

    student: Reduced
    teacher: np.ndarray | None  # uint8 [Ht, Ht, 3]


class Decoder:
    """Base of the random map: reads a record, prepares it, and turns every failure into `Rejected`, because a raising map ends a worker.

    Args:
      mixture: the opened sources.
      time_limit: seconds after which a record is given up; 0: none.
    """

    def __init__(self, mixture: Mixture, time_limit: float):
        self.mixture = mixture
        self.time_limit = time_limit

    def __call__(self, position: tuple[int, int], rng: np.random.Generator) -> Sample | Rejected:
        key, limit = self.mixture.key(*position), self.time_limit
        return attempt(
            key,
            limit,
            lambda: self.mixture.example(*position),
            lambda example: self.prepare(example, rng),
            " (data.time_limit)",
        )

    def prepare(self, example: Example, rng: np.random.Generator) -> Sample:
        raise AssertionError("a subclass prepares")


class ConversationDecoder(Decoder):
    """Prepares conversations for an ELVA stage.

    Args:
      mixture: the opened sources.
      config: the run's configuration.
      stage_name: one of its stages.
      tokenizer: a ChatML tokenizer.
      teacher_size: side of the teacher's square frames; None: none are made.
    """

    def __init__(
        self,
        mixture: Mixture,
        config: ConfigDict,
        stage_name: str,
        tokenizer: PreTrainedTokenizerBase,
        teacher_size: int | None,
    ):
        data = config.stages[stage_name].data
        super().__init__(mixture, data.time_limit)
        self.tokenizer = tokenizer
        self.capacity = budgets(config, stage_name)
        self.merge_lines, self.merges = (
            config.model.merge_lines,
            merges_before_bucket(config, stage_name),
        )
        self.max_turns = data.max_turns
        self.system_prompt = data.system_prompt
        self.fps, self.upscale, self.patch_size, self.teacher_size = (
            data.fps,
            data.upscale,
            config.model.patch_size,
            teacher_size,
        )
        self.square = config.teacher.image_size if config.model.patch_embed == "encoder" else 0
        self.plain = Hybrid(data.num_frames, 0, data.longest_edge)
        self.hybrid = Hybrid(
            data.num_frames,
            data.num_low_frames,
            data.longest_edge,
            data.low_longest_edge,
            data.hybrid_policy,
        )
        self.hybrid_probability = data.hybrid_probability if data.num_low_frames else 0.0

    def prepare(self, example: Example, rng: np.random.Generator) -> Sample:
        example = choose_turns(example, self.max_turns, rng)
        conversation.check(example)
        clips, pictures, teacher = [], [], []
        for medium in example.media:
            frames, squares = self._read(medium, self._draw(medium, rng), example.key)
            grids = tuple(
                (frame.shape[0] // self.patch_size, frame.shape[1] // self.patch_size)
                for frame in frames
            )
            clips.append(Clip(grids, bare=self.square > 0))
            pictures += frames
            teacher += squares
        layout, counts = self._lay_out(example, clips)
        patches = patchify(pictures, self.patch_size)
        return Sample(
            layout, patches[: counts.patches], self._stack(teacher[: counts.frames]), counts
        )

    def _draw(self, medium: Media, rng: np.random.Generator) -> Hybrid:
        """How a medium is read: some of the videos at two resolutions, where the stage says so."""
        if (
            medium.kind == "video"
            and self.hybrid_probability
            and rng.random() < self.hybrid_probability
        ):
            return self.hybrid
        return self.plain

    def _read(
        self, medium: Media, hybrid: Hybrid, name: str
    ) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """A medium's frames as the student sees them, uint8 [h, w, 3], and the same ones as the teacher does, uint8 [Ht, Ht, 3]."""

        def views(picture: Picture) -> Views:
            student = reduce_frame(
                picture,
                hybrid,
                patch_size=self.patch_size,
                upscale=self.upscale,
                square=self.square,
            )
            return Views(student, square(picture, self.teacher_size) if self.teacher_size else None)

        seen = read_medium(medium, hybrid.frames, self.fps, views, name)
        return settle([view.student for view in seen], hybrid), [view.teacher for view in seen]

    def _stack(self, teacher: list[np.ndarray]) -> np.ndarray | None:
        """uint8 [f, Ht, Ht, 3]; None without a teacher."""
        side = self.teacher_size
        return np.asarray(teacher, np.uint8).reshape(-1, side, side, 3) if side else None

    def _lay_out(self, example: Example, clips: list[Clip]) -> tuple:
        """Lays the example out, without its last turns where it is too long; the media of dropped turns go with them."""
        while True:
            kept = clips[: len(example.media)]
            layout = build_layout(
                conversation.render(
                    example, self.tokenizer, kept, example.system or self.system_prompt
                )
            )
            counts = count(layout, self.merge_lines, self.merges)
            exceeded = over(counts, self.capacity)
            if not exceeded:
                return layout, counts
            media_alone = {"patches", "frames"} & set(exceeded) and not conversation.has_markers(
                example
            )
            if media_alone or len(example.turns) == 1:
                raise DataError(f"one example exceeds the row's {' and '.join(exceeded)}")
            example = conversation.truncate(example, self._turns_that_may_fit(example, counts))

    def _turns_that_may_fit(self, example: Example, counts: Counts) -> int:
        """Drops turns from the end until their text covers the excess; at least one goes, the first always stays."""
        excess = max(counts.tokens - self.capacity.tokens, counts.floor - self.capacity.floor)
        turns = len(example.turns)
        while turns > 1:
            turns -= 1
            excess -= conversation.turn_tokens(example.turns[turns], self.tokenizer)
            if excess <= 0:
                break
        return turns if not conversation.has_markers(example) else len(example.turns) - 1


def choose_turns(example: Example, most: int, rng: np.random.Generator) -> Example:
    """At most `most` turns: random ones in random order, or the first ones where order or markers matter."""
    if example.ordered or conversation.has_markers(example):
        return conversation.truncate(example, most)
    chosen, seen = [], set()
    for k in rng.permutation(len(example.turns)):
        turn = example.turns[k]
        if len(chosen) < most and (not turn.about or turn.about not in seen):
            chosen.append(turn)
            seen.add(turn.about)
    return dataclasses.replace(example, turns=tuple(chosen))


def square(picture: Picture, side: int) -> np.ndarray:
    """A frame as the teacher sees it: uint8 [side, side, 3], squashed."""
    return picture.at((side, side))


def read_medium(
    medium: Media, num_frames: int, fps: float, transform: Callable[[Picture], Any], name: str
) -> list[Any]:
    """A medium's frames (one of an image), each transformed as soon as it is decoded.

    Raises:
      VideoError: a medium that cannot be read.
    """
    still = medium.kind == "image"
    return read_frames(
        medium.source,
        num_frames=1 if still else num_frames,
        fps=None if still or not fps else fps,
        transform=transform,
        name=name if isinstance(medium.source, bytes) else None,
    ).pixels


@dataclasses.dataclass(frozen=True, slots=True)
class CaptionSample:
    """One clip and one caption."""

    pixels: np.ndarray  # uint8 [f, Ht, Ht, 3]
    token_ids: np.ndarray  # int32 [length]


class CaptionDecoder(Decoder):
    """Prepares clip and caption pairs for a teacher stage: a random turn's answer is the caption."""

    def __init__(
        self,
        mixture: Mixture,
        config: ConfigDict,
        stage_name: str,
        tokenizer: PreTrainedTokenizerBase,
    ):
        data, teacher = config.stages[stage_name].data, config.teacher
        super().__init__(mixture, data.time_limit)
        self.tokenizer = tokenizer
        self.text_length = teacher.text_length
        self.num_frames, self.fps, self.side = data.num_frames, data.fps, teacher.image_size

    def prepare(self, example: Example, rng: np.random.Generator) -> CaptionSample:
        example = choose_turns(example, 1, rng)
        conversation.check(example)
        if not example.media:
            raise RecordError(example.key, "has no video or image for the caption")
        ids = conversation.token_ids(self.tokenizer, example.turns[0].answer.strip())[
            : self.text_length - 1
        ]
        pixels = read_medium(
            example.media[0],
            self.num_frames,
            self.fps,
            partial(square, side=self.side),
            example.key,
        )
        return CaptionSample(
            np.stack(pixels),
            np.asarray([*ids, self.tokenizer.convert_tokens_to_ids("<|endoftext|>")], np.int32),
        )
