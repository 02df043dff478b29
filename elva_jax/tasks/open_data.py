"""The data of the tasks of this package: conversations, or clips with captions.

Apart from the tasks because these compute without any of the packages that read data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from elva_jax.data.batches import caption_batches, conversation_batches, conversations_per_step
from elva_jax.data.captions import open_captions
from elva_jax.data.pipeline import BatchIterator
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.tasks.evaluators.answer_scores import HeldOutEvaluator
from elva_jax.tasks.evaluators.pairs import PairEvaluator
from elva_jax.tasks.siglip import SiglipTask
from elva_jax.tasks.video_llm import VideoLlmTask
from elva_jax.training.setup import TrainSetup
from elva_jax.training.stage_data import StageData
from elva_jax.training.task import Task


class Conversations:
    """Packed conversations, with the teachers' frames if the loss reads them."""

    def __init__(self, task: VideoLlmTask, tokenizer: PreTrainedTokenizerBase):
        self._task, self._tokenizer = task, tokenizer

    def open_batches(self, *, process_index: int = 0, process_count: int = 1) -> BatchIterator:
        """See `StageData`."""
        return conversation_batches(
            self._task.config,
            self._task.name,
            self._tokenizer,
            process_index=process_index,
            process_count=process_count,
            teacher=TeacherFrames.of(self._task.teachers.values()),
        )

    def examples_per_step(self) -> float:
        """Estimated from the first rows if short examples share them."""
        return conversations_per_step(self._task.config, self._task.name, self._tokenizer)

    def make_evaluator(self, setup: TrainSetup, frozen: Mapping[str, Any]) -> HeldOutEvaluator:
        """The evaluator of answers."""
        return HeldOutEvaluator(setup, self._task, frozen, self._tokenizer)


class ClipsWithCaptions:
    """Clips with their captions, one to a row, in the tokens of the text tower.

    Raises:
      DataError: the text tower's tokenizer is missing or damaged.
      ConfigError: a tokenizer with more tokens than the text tower has rows.
    """

    def __init__(self, task: SiglipTask, tokenizer: PreTrainedTokenizerBase):
        self._task, self._tokenizer = task, tokenizer
        self._captions = open_captions(task.config, task.part_sources.get("text", ""), tokenizer)

    def open_batches(self, *, process_index: int = 0, process_count: int = 1) -> BatchIterator:
        """See `StageData`."""
        return caption_batches(
            self._task.config,
            self._task.name,
            self._tokenizer,
            captions=self._captions,
            process_index=process_index,
            process_count=process_count,
        )

    def examples_per_step(self) -> float:
        """One to a row."""
        return float(self._task.stage.batch_size)

    def make_evaluator(self, setup: TrainSetup, frozen: Mapping[str, Any]) -> PairEvaluator:
        """The evaluator of pairs."""
        del frozen
        return PairEvaluator(setup, self._task, self._tokenizer, self._captions)


def open_data(task: Task, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """The data of a stage.

    Raises:
      DataError: a tokenizer that is missing or damaged.
      ConfigError: a tokenizer with too many tokens.
    """
    if isinstance(task, SiglipTask):
        return ClipsWithCaptions(task, tokenizer)
    if isinstance(task, VideoLlmTask):
        return Conversations(task, tokenizer)
    raise TypeError(f"no data for {type(task).__name__}; add it here")
