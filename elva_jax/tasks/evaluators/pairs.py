"""Evaluation of a stage of kind teacher: held-out clips and their captions.

loss                 the stage's loss over all held-out pairs, as one batch
retrieval            share of clips whose most similar caption, of all held-out ones, is their own
retrieval/caption    share of captions whose most similar clip is their own

Clips whose captions have the same tokens share that caption, so any of them is right. The caption
of an example with several answers is the same one at every evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from elva_jax.data.batches import caption_collator
from elva_jax.data.captions import Captions
from elva_jax.data.collate import CaptionSample
from elva_jax.data.decode_example import CaptionDecoder
from elva_jax.data.example import Example
from elva_jax.tasks.evaluators.examples import HeldOutExamples
from elva_jax.tasks.evaluators.program import MeshProgram
from elva_jax.tasks.siglip import SiglipTask
from elva_jax.training.setup import TrainSetup

CHUNK = 1024  # rows whose similarities to all others exist at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRows:
    """A batch of one process."""

    arrays: dict[str, Any]  # a batch of the stage, and `number` [b] of the example; -1: padding


class HeldOutPairs(HeldOutExamples[PairRows]):
    """The held-out clips of a stage with a caption each, one process's share of them.

    Args:
      task: of the stage.
      tokenizer: the run's.
      captions: the tokens of captions.

    Raises:
      DataError: the data is missing or malformed.
    """

    def __init__(self, task: SiglipTask, tokenizer: PreTrainedTokenizerBase, captions: Captions):
        super().__init__(task)
        self._decoder = CaptionDecoder(
            self._mixture, self._config, self._stage, tokenizer, captions
        )
        self._collator = caption_collator(self._config, self._stage, captions)

    def padding(self) -> PairRows:
        """Rows without any example, for a process that has no more than these."""
        return self._collate([])

    def _make_batches(self) -> Iterator[PairRows]:
        rows: list[tuple[int, CaptionSample]] = []
        for row in self._read(self._prepare, self._decoder.time_limit):
            rows.append(row)
            if len(rows) == self._rows:
                yield self._collate(rows)
                rows = []
        if rows:
            yield self._collate(rows)

    def _prepare(self, number: int, example: Example) -> tuple[int, CaptionSample]:
        return number, self._decoder.prepare(example, np.random.default_rng(0))

    def _collate(self, rows: list[tuple[int, CaptionSample]]) -> PairRows:
        missing = self._rows - len(rows)
        arrays = self._collator([[sample] for _, sample in rows])
        arrays["number"] = np.asarray([number for number, _ in rows], np.int32)
        return PairRows(
            arrays={
                name: np.pad(
                    array,
                    ((0, missing), *((0, 0),) * (array.ndim - 1)),
                    constant_values=-1 if name == "number" else 0,
                )
                for name, array in arrays.items()
            }
        )


class PairEvaluator:
    """`params -> numbers by name`, on all processes; reads nothing that training changes.

    Args:
      setup: of the stage.
      task: its task.
      tokenizer: the run's.
      captions: the tokens of captions.

    Raises:
      DataError: the held-out data is missing or malformed.
    """

    def __init__(
        self,
        setup: TrainSetup,
        task: SiglipTask,
        tokenizer: PreTrainedTokenizerBase,
        captions: Captions,
    ):
        self._names = task.stage.eval.evaluators
        self._held_out = HeldOutPairs(task, tokenizer, captions)

        def encode(params: Any, frozen: Any, batch: Any) -> dict[str, Any]:
            del frozen
            clip_BxC, text_BxC, *scalars = task.features(params, batch)
            kept = {name: batch[name] for name in ("number", "token_ids")}
            return {"clip": clip_BxC, "text": text_BxC, "scalars": scalars, **kept}

        self._encode = MeshProgram(setup, encode, "clips and captions")
        self._compare = jax.jit(task.compare)

    def __call__(
        self, params: Any, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """See `training.stage_data.Evaluate`; no tokens merge."""
        parts: list[dict[str, np.ndarray]] = []
        scalars: list[np.ndarray] = []
        for rows in self._held_out.of_all_processes(stop):
            if rows is None:
                return None
            found = self._encode(params, {}, rows.arrays)
            scalars, used = found.pop("scalars"), found["number"] >= 0
            parts.append({name: array[used] for name, array in found.items()})
        count = sum(len(part["number"]) for part in parts)
        unreadable = self._held_out.unreadable(count, "there is none")
        # In the order of the examples, however processes shared them.
        order = np.argsort(np.concatenate([part["number"] for part in parts]))
        clip_NxC, text_NxC, ids_NxL = (
            np.concatenate([part[name] for part in parts])[order]
            for name in ("clip", "text", "token_ids")
        )
        values: dict[str, float] = {}
        if "loss" in self._names:
            values["loss"] = float(self._compare(clip_NxC, text_NxC, *scalars)[0])
        if "retrieval" in self._names:
            _, caption_N = np.unique(ids_NxL, axis=0, return_inverse=True)
            values["retrieval"] = recall(clip_NxC, text_NxC, caption_N)
            values["retrieval/caption"] = recall(text_NxC, clip_NxC, caption_N)
        return values | {"pairs": float(count), "unreadable": float(unreadable)}


def recall(ours_NxC: np.ndarray, theirs_NxC: np.ndarray, label_N: np.ndarray) -> float:
    """The share of rows of ours whose most similar row of theirs, by cosine, has their label."""
    ours_NxC, theirs_NxC = (
        x.astype(np.float32) / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (ours_NxC, theirs_NxC)
    )
    starts = range(0, len(ours_NxC), CHUNK)
    nearest_N = np.concatenate(
        [np.argmax(ours_NxC[i : i + CHUNK] @ theirs_NxC.T, axis=1) for i in starts]
    )
    return float(np.mean(label_N[nearest_N] == label_N))
