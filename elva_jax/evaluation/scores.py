"""Accuracies per family and their macro mean, with standard errors that respect questions sharing a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """An accuracy in [0, 1], its standard error, and how many questions stand behind it (all of them, answered or not)."""

    accuracy: float
    stderr: float
    count: int


def summarise(
    credit: Sequence[float],
    family: Sequence[str],
    video: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Score], Score]:
    """Scores per family (alphabetical) and their macro mean: the mean of the families' accuracies, whatever their sizes.

    Standard errors come from a bootstrap over videos, because the questions about one video are not independent;
    families are resampled together.

    Args:
      credit: [n] credit of each question: 1 right, 0 wrong or unanswered, in between for an expected accuracy.
      family: [n] family of each question.
      video: [n] key of the video that each question is about.
    """
    if not len(credit):
        return {}, Score(float("nan"), float("nan"), 0)
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
    with np.errstate(invalid="ignore"):
        resampled_RxF = np.ma.masked_invalid((draws_RxV @ right_VxF) / (draws_RxV @ asked_VxF))
    stderr_F = resampled_RxF.std(axis=0).filled(float("nan"))
    counts_F = asked_VxF.sum(0).astype(int)
    per_family = {
        str(name): Score(float(a), float(s), int(n))
        for name, a, s, n in zip(families, accuracy_F, stderr_F, counts_F, strict=True)
    }
    macro = Score(
        float(accuracy_F.mean()), float(resampled_RxF.mean(axis=1).std()), int(counts_F.sum())
    )
    return per_family, macro
