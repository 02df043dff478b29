"""Batches of two kinds: packed conversations for a video LLM, captions for a vision tower."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import Config, StageConfig
from elva_jax.config.serialize import typed
from elva_jax.data.captions import Captions, RunCaptions
from elva_jax.data.collate import CaptionCollator, PackedCollator
from elva_jax.data.conversation import check_tokenizer
from elva_jax.data.decode_example import CaptionDecoder, ConversationDecoder
from elva_jax.data.mixture import Mixture
from elva_jax.data.packing import RowCapacity, SingleRows, make_packer
from elva_jax.data.pipeline import BatchIterator, make_batches
from elva_jax.data.prompt_format import FORMATS
from elva_jax.data.teacher_frames import NO_TEACHER, TeacherFrames

ESTIMATE_ROWS = 32  # rows per batch; two batches are packed to estimate the examples per step


def conversation_batches(
    config: Config,
    stage_name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: TeacherFrames = NO_TEACHER,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
) -> BatchIterator:
    """Batches of packed conversations; see `PackedCollator` and `pipeline.make_batches`.

    Args:
      config: the configuration of the run.
      stage_name: name of the stage.
      tokenizer: a tokenizer with the tokens of the stage's `data.prompt_format`.
      teacher: the frames that teachers see.
      process_index: index of this process.
      process_count: number of processes.
      workers: number of decoding processes; None: the value of the stage.

    Raises:
      DataError: the data is missing or cannot be divided among the processes, or the tokenizer
        does not fit `data.prompt_format`.
    """
    stage = config.stages[stage_name]
    check_tokenizer(tokenizer, FORMATS[stage.data.prompt_format])
    capacity = RowCapacity.of_stage(stage)
    return make_batches(
        config,
        stage_name,
        decoder=ConversationDecoder(Mixture(config, stage_name), config, stage, tokenizer, teacher),
        packer=make_packer(stage.data, capacity),
        collator=PackedCollator(
            capacity=capacity, patch_width=typed(Config, config).model.patch_values, teacher=teacher
        ),
        process_index=process_index,
        process_count=process_count,
        workers=workers,
    )


def caption_batches(
    config: Config,
    stage_name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    captions: Captions | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Batches of clips with captions, one per row; see `CaptionCollator`.

    Args:
      config: the configuration of the run.
      stage_name: name of the stage.
      tokenizer: the run's.
      captions: the tokens of captions; None: those of `tokenizer`.
      process_index: index of this process.
      process_count: number of processes.

    Raises:
      DataError: the data is missing or cannot be divided among the processes.
    """
    stage = config.stages[stage_name]
    captions = captions or RunCaptions(tokenizer=tokenizer, length=config.teacher.text_length)
    return make_batches(
        config,
        stage_name,
        decoder=CaptionDecoder(Mixture(config, stage_name), config, stage, tokenizer, captions),
        packer=SingleRows(),
        collator=caption_collator(config, stage, captions),
        process_index=process_index,
        process_count=process_count,
    )


def caption_collator(config: Config, stage: StageConfig, captions: Captions) -> CaptionCollator:
    """Makes batches of clips and captions, in the shapes of a stage."""
    return CaptionCollator(
        num_frames=stage.data.num_frames,
        image_size=config.teacher.image_size,
        text_length=config.teacher.text_length,
        padding_id=captions.padding_id,
    )


def conversations_per_step(
    config: Config, stage_name: str, tokenizer: PreTrainedTokenizerBase
) -> float:
    """Number of examples per step over all processes; an estimate if rows are packed.

    It is the same on every process, so that all of them convert epochs to the same number of steps.
    """
    stage = config.stages[stage_name]
    if not stage.data.pack:
        return float(stage.batch_size)
    rows = min(stage.batch_size, ESTIMATE_ROWS)
    batches = conversation_batches(config, stage_name, tokenizer, workers=0)
    packed = []
    for _ in range(2):
        batches.take_rows(rows)
        packed.append(batches.stats)
    batches.close()
    # The first rows contain more long examples than average. Every example is packed eventually,
    # so the mean length is taken over all examples that were read, waiting ones included.
    tokens = sum(stats["token_fill"] for stats in packed) * rows * stage.data.seq_len
    examples = sum(stats["examples"] for stats in packed) + len(batches.waiting)
    mean_tokens = (tokens + sum(counts.tokens for counts in batches.waiting)) / examples
    return tokens / (2 * rows) / mean_tokens * stage.batch_size
