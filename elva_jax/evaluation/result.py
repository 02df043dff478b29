"""The settings of an evaluation, and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elva_jax.evaluation.scores import Score
from elva_jax.inference.prefilled import Answer
from elva_jax.inference.quantization import Scheme
from elva_jax.utils import numbers

if TYPE_CHECKING:  # its module needs TensorFlow Datasets, an extra
    from elva_jax.evaluation.questions import Question


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The questions that a model is asked, and what is measured about its answers.

    Attributes:
      dataset: name of the data set.
      split: split of the data set.
      data_dir: folder in which data sets are built; None: the run's.
      limit: number of videos, from the first; None: all.
      num_frames: frames sampled from a video; None: as in the run's last stage.
      hybrid: fields of `video.hybrid.Hybrid`, for frames of two resolutions instead; missing fields
        are completed by `video.hybrid.complete`.
      merging: whether the model's merging layers act.
      batch_size: videos per batch.
      max_new_tokens: length of written answers.
      written: whether answers are written and compared by exact match (column open).
      letters: whether options are also listed in the prompt, and their letters scored (letter).
      baselines: whether to measure the baselines blind, single_frame and any_object as well.
      weights: int8 or int4: the model's matrices are quantized, as by `elva_jax.load`; None: as the
        model has them.
      prefill_chunk: tokens of a prompt that prefill takes at a time, as in `elva_jax.load`.

    Example:
      >>> import elva_jax
      >>> elva_jax.EvalConfig(split="train", limit=100, written=False).dataset
      'moving_shapes/easy'
    """

    dataset: str = "moving_shapes/easy"
    split: str = "test"
    data_dir: str | Path | None = None
    limit: int | None = None
    num_frames: int | None = None
    hybrid: Mapping[str, int | str] = field(default_factory=dict)
    merging: bool = True
    batch_size: int = 32
    max_new_tokens: int = 16
    written: bool = True
    letters: bool = True
    baselines: bool = True
    weights: Scheme | None = None
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        numbers.check_fields(self, numbers.ASKING)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One question and the model's response; None for parts that were not or cannot be measured."""

    question: Question
    answer: Answer | None  # written
    log_likelihoods: tuple[float, ...] | None  # of the options
    picks: dict[str, int | None]  # by column: the option chosen
    # By column: 1 right, 0 wrong; between them: an expected accuracy. {}: the video is unreadable.
    credit: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The prediction for a JSON file."""
        item = self.question
        return {
            "video": item.video,
            "family": item.family,
            "question": item.text,
            "answer": item.answer,
            "options": item.options,
            "written": self.answer.text if self.answer else None,
            "log_likelihoods": self.log_likelihoods,
            "picks": self.picks,
        }


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Accuracies per family and their macro mean, with the facts needed to read them.

    Columns: open (exact match of a written answer), likelihood (likeliest option text;
    likelihood_mean: per token), letter (likeliest letter), and the baselines blind, single_frame
    and any_object.
    """

    # stage, parameters (their number), dtype, checkpoint (its path), step, weights_hash
    model: dict[str, Any]
    families: dict[str, dict[str, Score]]  # by family and column
    macro: dict[str, Score]  # by column: the mean over families
    answers: dict[str, int]  # counts of written answers, and of those that cannot be used
    tokens: dict[str, Any]  # prompt, segments, visual_kept: means over videos that could be read
    versions: dict[str, str]  # elva_jax, jax, device
    attention: str
    config: dict[str, Any]  # the run's configuration
    data: dict[str, Any]  # name, split, videos, questions, unreadable, prompts_hash, data_dir
    settings: dict[str, Any]  # of the evaluation, and of the run where they matter for comparisons
    seconds: float
    predictions: tuple[Prediction, ...]  # one per question

    def to_dict(self, *, predictions: bool = False) -> dict[str, Any]:
        """The result as `elva evaluate --json` writes it; predictions are `items`, if wanted."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        items = out.pop("predictions")
        out["macro"] = _scores(self.macro)
        out["families"] = {
            family: {"count": next(iter(row.values())).count, **_scores(row)}
            for family, row in self.families.items()
        }
        return out | ({"items": [item.to_dict() for item in items]} if predictions else {})


def _scores(row: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    return {column: {"accuracy": s.accuracy, "stderr": s.stderr} for column, s in row.items()}
