"""The hook that evaluates every `eval.every` steps, and at the end of the stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from elva_jax.checkpoints.state import TrainState
from elva_jax.errors import TrainingError
from elva_jax.parallel.collectives import all_gather_json
from elva_jax.tasks.base import Metrics
from elva_jax.tasks.siglip import SiglipTask
from elva_jax.training.evaluators.base import Answer, Candidate, Frames, Observations
from elva_jax.training.evaluators.best import PREFIX, BestWeights
from elva_jax.training.evaluators.held_out import HeldOut, Rows
from elva_jax.training.evaluators.pairs import PairEvaluator
from elva_jax.training.evaluators.program import ScoreRows
from elva_jax.training.evaluators.registry import EVALUATORS
from elva_jax.training.goodput import StepClock
from elva_jax.training.hooks import Hook
from elva_jax.training.metric_writers import MetricWriters
from elva_jax.training.progress import StageProgress
from elva_jax.training.setup import TrainSetup

SHOWN = ("loss", "exact", "choice", "retrieval")  # on the console


class HeldOutEvaluator:
    """`params -> numbers by name`, on all processes; reads nothing that training changes.

    Args:
      setup: of the stage.
      frozen: the trees that its loss reads.
      tokenizer: the run's.

    Raises:
      DataError: the held-out data is missing or malformed.
    """

    def __init__(
        self, setup: TrainSetup, frozen: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
    ):
        stage = setup.task.stage
        self._setup, self._frozen, self._names = setup, frozen, stage.eval.evaluators
        features = "retrieval" in self._names
        self._held_out = HeldOut(
            setup.task,
            tokenizer,
            options=bool({"accuracy", "merging"} & set(self._names)),
            teacher=features,
        )
        modes = (False, True) if "merging" in self._names else (stage.merging,)
        self._programs = {
            mode: ScoreRows(setup, merging=mode, features=features and mode == stage.merging)
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
        own = self._setup.task.stage.merging
        answers: dict[bool, list[Answer]] = {mode: [] for mode in self._programs}
        frames: list[Frames] = []
        for rows in self._held_out.of_all_processes(stop):
            if rows is None:
                return None
            for mode, program in self._programs.items():
                scores = program(params, self._frozen, rows.arrays)
                if scores["overflow"]:
                    raise TrainingError(
                        f"{self._setup.task.name}: {scores['overflow']} tokens of an evaluation did"
                        " not fit into the merge bucket; raise"
                        f" stages.{self._setup.task.name}.merge_buckets"
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


def make_evaluator(
    setup: TrainSetup, frozen: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> HeldOutEvaluator | PairEvaluator:
    """The evaluator of a stage: of answers, or, for a stage that trains a teacher, of captions.

    Raises:
      DataError: the held-out data is missing or malformed.
    """
    if isinstance(setup.task, SiglipTask):
        return PairEvaluator(setup, setup.task, tokenizer)
    return HeldOutEvaluator(setup, frozen, tokenizer)


class EvaluationHook(Hook):
    """Evaluates, reports the numbers as `eval/…`, and keeps the best weights.

    Args:
      setup: of the stage.
      evaluator: measures parameters.
      best: takes the weights.
      clock: told what the time goes into.
      writers: of metrics.jsonl and the like.
      progress: shows the numbers.
      stop: whether the run is asked to stop, which does not wait for an evaluation; the next start
        makes up for it.
    """

    def __init__(
        self,
        setup: TrainSetup,
        evaluator: HeldOutEvaluator | PairEvaluator,
        *,
        best: BestWeights,
        clock: StepClock,
        writers: MetricWriters,
        progress: StageProgress,
        stop: Callable[[], bool],
    ):
        self._setup, self._evaluator, self._best = setup, evaluator, best
        self._clock, self._writers, self._progress = clock, writers, progress
        self._stop = stop

    def begin(self, step: int, state: TrainState) -> None:
        """Evaluates the step that the stage continues from, where a stop did not let it."""
        if step and self._is_due(step) and step not in self._best.reported_steps():
            self._evaluate(step, state)

    def after_step(
        self, step: int, state: TrainState, batch: Mapping[str, Any], metrics: Metrics
    ) -> None:
        """Evaluates the weights after a step, if it is time."""
        if not self._is_due(step):
            return
        self._clock.charge("host")
        jax.block_until_ready(metrics)
        self._clock.charge("device")
        self._evaluate(step, state)
        self._clock.charge("evaluate")

    def _is_due(self, step: int) -> bool:
        return step % self._setup.task.stage.eval.every == 0 or step == self._setup.steps

    def _evaluate(self, step: int, state: TrainState) -> None:
        # A stage that is complete does not start again.
        start, last = time.monotonic(), step == self._setup.steps
        values = self._evaluator(state.params, lambda: self._stop() and not last)
        if values is None:
            name = self._setup.task.name
            self._progress.note(f"{name}: step {step} is evaluated at the next start")
            return
        saved = self._best.offer(step, self._best.value_of(values), state.params)
        values["seconds"] = time.monotonic() - start
        self._writers.write(step, {PREFIX + name: value for name, value in values.items()})
        shown = [f"{name} {values[name]:.4f}" for name in SHOWN if name in values]
        words = [f"{values['seconds']:.1f} s", *(["best so far"] if saved else [])]
        self._progress.note(
            f"{self._setup.task.name} {step}: held out:  {'  '.join(shown)}  ({', '.join(words)})"
        )


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
