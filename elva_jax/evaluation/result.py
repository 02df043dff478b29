"""The settings of an evaluation, and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError
from elva_jax.evaluation.scores import Score


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

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        for name in ("limit", "batch_size", "max_new_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One question and what the model made of it."""

    video: str  # key of the video
    family: str
    question: str
    answer: str  # the reference
    options: tuple[str, ...]
    written: str | None  # None: not asked for, or the video cannot be read
    log_likelihoods: tuple[float, ...] | None  # of the options
    picks: dict[str, int | None]  # by column: the option chosen


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Accuracies per family and their macro mean, with everything needed to read them.

    Columns: open (exact match of a written answer), likelihood (likeliest option text;
    likelihood_mean: per token), letter (likeliest letter), and the baselines blind, single_frame
    and any_object.

    Attributes:
      model: stage, parameters (their number), checkpoint (its path) and step.
      families: by family, then column; `Score.count` is the number of questions.
      macro: by column: the mean over families.
      answers: total, empty, unfinished (cut off), outside_options, without_likelihood: counts.
      tokens: prompt, segments and visual_kept: means over videos that could be read.
      versions: of elva_jax, jax and the device.
      attention: the attention implementation.
      config: the run's configuration.
      data: name, split, videos, questions, unreadable (one line per video) and data_dir.
      settings: the evaluation's settings, and those of the run that matter for comparisons.
      seconds: duration.
      predictions: one per question.
    """

    model: dict[str, Any]
    families: dict[str, dict[str, Score]]
    macro: dict[str, Score]
    answers: dict[str, int]
    tokens: dict[str, Any]
    versions: dict[str, str]
    attention: str
    config: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    seconds: float
    predictions: tuple[Prediction, ...]

    def to_dict(self, *, predictions: bool = False) -> dict[str, Any]:
        """The result as `elva evaluate --json` writes it, with predictions as `items` if wanted."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del out["predictions"]
        out["families"] = {
            family: {"count": next(iter(row.values())).count, **_scores(row)}
            for family, row in self.families.items()
        }
        out["macro"] = _scores(self.macro)
        if predictions:
            out["items"] = [dataclasses.asdict(prediction) for prediction in self.predictions]
        return out


def _scores(row: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    return {
        column: {"accuracy": score.accuracy, "stderr": score.stderr}
        for column, score in row.items()
    }
