"""Held-out examples as packed rows of the stage's shape, the same ones at every evaluation.

Each question with options becomes one independent turn per option; the turns share their video:

    video | Where is it?  left | Where is it?  right | What color?  red | What color?  blue

Nothing is random: all turns of an example are asked, in order, and in several rows if they exceed
one. Questions whose media stand in the text, or that follow each other, are scored as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from elva_jax.data import conversation
from elva_jax.data.collate import PackedCollator
from elva_jax.data.decode_example import ConversationDecoder
from elva_jax.data.example import Example, Turn
from elva_jax.data.packing import RowCapacity, Sample, make_packer
from elva_jax.data.teacher_frames import TeacherFrames
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.evaluators.base import Candidate
from elva_jax.tasks.evaluators.examples import HeldOutExamples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A decoded example, or as many of its questions as fit a row."""

    sample: Sample
    candidates: tuple[Candidate, ...]  # in the order of the answers in the sample
    owner: int  # number of the example; -1: an earlier piece shows its frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch of one process."""

    arrays: dict[str, Any]  # a batch of the stage, and `row` [b] and `owner` [b, F]
    candidates: tuple[tuple[Candidate, ...], ...]  # of each row
    lengths: tuple[tuple[int, ...], ...]  # learned tokens of each of them


class HeldOut(HeldOutExamples[Rows]):
    """The held-out questions of a stage, one process's share of them.

    Args:
      task: of the stage.
      tokenizer: the run's.
      options: whether options are scored, or reference answers alone.
      teacher: whether rows need the teachers' frames.

    Raises:
      DataError: the data is missing or malformed.
    """

    def __init__(
        self, task: ModelTask, tokenizer: PreTrainedTokenizerBase, *, options: bool, teacher: bool
    ):
        super().__init__(task)
        frames = TeacherFrames.of(task.teachers.values() if teacher else ())
        self._decoder = ConversationDecoder(
            self._mixture, self._config, self._stage, tokenizer, frames
        )
        self._capacity = RowCapacity.of_stage(self._stage)
        self._collator = PackedCollator(
            capacity=self._capacity, patch_width=self._config.model.patch_values, teacher=frames
        )
        self._options = options

    def padding(self) -> Rows:
        """Rows without any example, for a process that has no more than these."""
        return self._collate([])

    def _make_batches(self) -> Iterator[Rows]:
        packer = make_packer(self._stage.data, self._capacity)
        rows: list[list[Piece]] = []

        def full(wanted: int) -> Iterator[Rows]:
            while len(rows) >= wanted:
                yield self._collate(rows[: self._rows])
                del rows[: self._rows]

        for pieces in self._read(self._lay_out, self._decoder.time_limit):
            for piece in pieces:
                packer.add(piece, piece.sample.counts)
                while not packer.short:
                    rows.append(packer.take())
                yield from full(self._rows)
        while packer.waiting:
            rows.append(packer.take())
        yield from full(1)

    def _lay_out(self, number: int, example: Example) -> list[Piece]:
        """The pieces of an example.

        Raises:
          ElvaError: it cannot be used.
        """
        conversation.check(example)
        decoder, owner, pieces = self._decoder, number, []
        visuals = decoder.read_media(example, np.random.default_rng(0))
        clips = [visual.clip for visual in visuals]
        alone = example.independent or len(example.turns) == 1
        separate = alone and not conversation.has_markers(example)
        asked = candidates(number, example.turns, options=self._options and separate)
        if separate:
            example = dataclasses.replace(example, independent=True)
        while asked:
            turns = tuple(turn for turn, _ in asked)
            layout, counts = decoder.lay_out(dataclasses.replace(example, turns=turns), clips)
            fitting = len(answer_lengths(layout.loss_weight))
            pieces.append(
                Piece(
                    sample=decoder.to_sample(layout, counts, visuals),
                    candidates=tuple(candidate for _, candidate in asked[:fitting]),
                    owner=owner,
                )
            )
            asked, owner = asked[fitting:] if separate else [], -1
        return pieces

    def _collate(self, rows: Sequence[Sequence[Piece]]) -> Rows:
        rows = [*rows, *([[]] * (self._rows - len(rows)))]
        arrays = self._collator([[piece.sample for piece in row] for row in rows])
        owner = np.full((len(rows), self._capacity.frames), -1, np.int32)
        for r, row in enumerate(rows):
            owners = [np.full(piece.sample.counts.frames, piece.owner) for piece in row]
            owner[r, : sum(map(len, owners))] = np.concatenate([*owners, []])
        arrays["row"] = self._process * self._rows + np.arange(len(rows), dtype=np.int32)
        arrays["owner"] = owner
        return Rows(
            arrays=arrays,
            candidates=tuple(
                tuple(candidate for piece in row for candidate in piece.candidates) for row in rows
            ),
            lengths=tuple(tuple(answer_lengths(row)) for row in arrays["layout"].loss_weight),
        )


def candidates(
    example: int, turns: Sequence[Turn], *, options: bool
) -> list[tuple[Turn, Candidate]]:
    """The turns with the answers to score: each option where one of them is right."""
    out = []
    for number, turn in enumerate(turns):
        texts = _options(turn) if options else ()
        answers = list(enumerate(texts)) if texts else [(-1, turn.answer)]
        for option, answer in answers:
            candidate = Candidate(
                example=example,
                turn=number,
                option=option,
                right=answer.strip() == turn.answer.strip(),
                family=turn.family or turn.task,
            )
            out.append((dataclasses.replace(turn, answer=answer), candidate))
    return out


def _options(turn: Turn) -> tuple[str, ...]:
    """The options as answers, texts or letters; () where the answer is not exactly one of them."""
    letters = conversation.LETTERS[: len(turn.options)]
    for texts in (turn.options, tuple(letters)):
        if [text.strip() for text in texts].count(turn.answer.strip()) == 1 and all(texts):
            return texts
    return ()


def answer_lengths(weight_S: np.ndarray) -> list[int]:
    """The numbers of learned tokens of the answers in a sequence, in order.

    Between two answers there is always a token that is not learned.
    """
    learned = np.concatenate([[0], weight_S > 0, [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(learned))
    return (edges[1::2] - edges[::2]).tolist()
