"""Evaluation of a stage of kind elva: the scores of held-out answers, which evaluators reduce."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from elva_jax.errors import TrainingError
from elva_jax.parallel.collectives import all_gather_json
from elva_jax.tasks.evaluators.base import Answer, Candidate, Frames, Observations
from elva_jax.tasks.evaluators.held_out import HeldOut, Rows
from elva_jax.tasks.evaluators.program import ScoreRows
from elva_jax.tasks.evaluators.registry import EVALUATORS
from elva_jax.tasks.video_llm import VideoLlmTask
from elva_jax.training.setup import TrainSetup


class HeldOutEvaluator:
    """`params -> numbers by name`, on all processes; reads nothing that training changes.

    Args:
      setup: of the stage.
      task: its task.
      frozen: the trees that its loss reads.
      tokenizer: the run's.

    Raises:
      DataError: the held-out data is missing or malformed.
    """

    def __init__(
        self,
        setup: TrainSetup,
        task: VideoLlmTask,
        frozen: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
    ):
        stage = task.stage
        self._task, self._frozen, self._names = task, frozen, stage.eval.evaluators
        features = "retrieval" in self._names
        self._held_out = HeldOut(
            task,
            tokenizer,
            options=bool({"accuracy", "merging"} & set(self._names)),
            teacher=features,
        )
        modes = (False, True) if "merging" in self._names else (stage.merging,)
        self._programs = {
            mode: ScoreRows(setup, task, merging=mode, features=features and mode == stage.merging)
            for mode in modes
        }

    def __call__(
        self, params: Any, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """The numbers of all evaluators, and what they count.

        Args:
          params: the stage's parameters.
          stop: asked before each batch whether to give up; where one process does, all do.

        Returns:
          the numbers; None if it was stopped.

        Raises:
          DataError: no example can be read.
          TrainingError: tokens do not fit into a merge bucket.
        """
        own = self._task.stage.merging
        answers: dict[bool, list[Answer]] = {mode: [] for mode in self._programs}
        frames: list[Frames] = []
        for rows in self._held_out.of_all_processes(stop):
            if rows is None:
                return None
            for mode, program in self._programs.items():
                scores = program(params, self._frozen, rows.arrays)
                if scores["overflow"]:
                    raise TrainingError(
                        f"{self._task.name}: {scores['overflow']} tokens of an evaluation did"
                        " not fit into the merge bucket; raise"
                        f" stages.{self._task.name}.merge_buckets"
                    )
                answers[mode] += _answers(rows, scores)
                if mode == own and "ours" in scores:
                    frames.append(_frames(scores))
        observed = Observations(
            answers={mode: _of_all_processes(found) for mode, found in answers.items()},
            merging=own,
            frames=_join(frames) if frames else None,
        )
        unreadable = self._held_out.unreadable(len(observed.own), "no example has an answer")
        values = {name: value for e in self._names for name, value in EVALUATORS[e](observed)}
        counts = {"answers": len(observed.own), "unreadable": unreadable}
        return values | {name: float(count) for name, count in counts.items()}


def _answers(rows: Rows, scores: Mapping[str, np.ndarray]) -> Iterator[Answer]:
    """The scored candidates of this process's rows."""
    place = {int(number): index for index, number in enumerate(scores["row"])}
    for number, candidates, lengths in zip(
        rows.arrays["row"], rows.candidates, rows.lengths, strict=True
    ):
        if not candidates:
            continue
        row = place[int(number)]
        learned = scores["weight"][row] > 0
        cuts = np.cumsum(lengths)[:-1]
        nll = np.split(scores["nll"][row][learned].astype(np.float64), cuts)
        hit = np.split(scores["hit"][row][learned], cuts)
        for candidate, losses, hits in zip(candidates, nll, hit, strict=True):
            yield Answer(
                candidate=candidate,
                nll=float(np.sum(losses)),
                tokens=len(losses),
                exact=bool(hits.all()),
            )


def _frames(scores: Mapping[str, Any]) -> Frames:
    """The frames of the rows of all processes."""
    valid = scores["valid"] & (scores["owner"] >= 0)
    return Frames(
        ours={name: found[valid] for name, found in scores["ours"].items()},
        theirs={name: found[valid] for name, found in scores["theirs"].items()},
        example=scores["owner"][valid],
    )


def _join(parts: list[Frames]) -> Frames:
    """All frames in the order of their examples, however rows were packed."""
    example = np.concatenate([part.example for part in parts])
    order = np.argsort(example, kind="stable")

    def ordered(features: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([part[name] for part in features])[order] for name in features[0]
        }

    return Frames(
        ours=ordered([part.ours for part in parts]),
        theirs=ordered([part.theirs for part in parts]),
        example=example[order],
    )


def _of_all_processes(answers: list[Answer]) -> tuple[Answer, ...]:
    """The answers of all processes in order, so that sums do not depend on who read what."""
    lines = [
        [
            answer.candidate.example,
            answer.candidate.turn,
            answer.candidate.option,
            answer.candidate.right,
            answer.candidate.family,
            answer.nll,
            answer.tokens,
            answer.exact,
        ]
        for answer in answers
    ]
    out = []
    for example, turn, option, right, family, nll, tokens, exact in sorted(
        line for process in all_gather_json(lines) for line in process
    ):
        candidate = Candidate(example=example, turn=turn, option=option, right=right, family=family)
        out.append(Answer(candidate=candidate, nll=nll, tokens=tokens, exact=exact))
    return tuple(out)
