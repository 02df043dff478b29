"""Accuracies per family and their macro mean, with standard errors from a bootstrap over videos.

    accuracy(family) = sum of credits / number of questions        macro = mean over families

Questions about one video are not independent, so a resample draws whole videos with replacement;
the standard error is the standard deviation of the accuracy over resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Score:
    """An accuracy in [0, 1], its standard error, and the number of all questions asked."""

    accuracy: float
    stderr: float
    count: int


def summarize(
    credit: Sequence[float],
    family: Sequence[str],
    video: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Score], Score]:
    """Scores per family (alphabetical) and their macro mean, whatever the sizes of the families.

    Args:
      credit: [n] credit of each question: 1 right, 0 wrong or unanswered; between them: an expected
        accuracy.
      family: [n] family of each question.
      video: [n] key of the video that each question is about.
      resamples: number of draws for the standard errors; all families share them.
      seed: seed of the draws.
    """
    if not len(credit):
        return {}, Score(accuracy=float("nan"), stderr=float("nan"), count=0)
    families, family_n = np.unique(np.asarray(family), return_inverse=True)
    videos, video_n = np.unique(np.asarray(video), return_inverse=True)
    shape = (len(videos), len(families))
    right_VxF, asked_VxF = np.zeros(shape), np.zeros(shape)
    np.add.at(right_VxF, (video_n, family_n), np.asarray(credit, np.float64))
    np.add.at(asked_VxF, (video_n, family_n), 1.0)
    accuracy_F = right_VxF.sum(0) / asked_VxF.sum(0)
    draws_RxV = np.random.default_rng(seed).multinomial(
        len(videos), np.full(len(videos), 1 / len(videos)), size=resamples
    )
    with np.errstate(invalid="ignore"):  # a draw may lack a rare family
        resampled_RxF = np.ma.masked_invalid((draws_RxV @ right_VxF) / (draws_RxV @ asked_VxF))
    stderr_F = resampled_RxF.std(axis=0).filled(float("nan"))
    counts_F = asked_VxF.sum(0).astype(int)
    per_family = {
        str(name): Score(accuracy=float(a), stderr=float(s), count=int(n))
        for name, a, s, n in zip(families, accuracy_F, stderr_F, counts_F, strict=True)
    }
    stderr = float(resampled_RxF.mean(axis=1).std())
    count = int(counts_F.sum())
    return per_family, Score(accuracy=float(accuracy_F.mean()), stderr=stderr, count=count)
