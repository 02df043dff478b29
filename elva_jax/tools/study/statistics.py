"""Means over seeds with 95 % intervals, by a bootstrap over seeds and videos.

    credit [S, Q]    1 where seed s answers question q right
    family accuracy  mean over its questions        macro  mean over families
    resample         videos with replacement (their questions together), and seeds with replacement

All variants share a resample's videos and seeds, so differences are paired: what a hard video or a
lucky seed does to both sides cancels out. One seed has an interval over videos alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from elva_jax.evaluation.results.intervals import interval

RESAMPLES = 2000
MACRO = "macro"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """The questions that all runs were asked, and who answered them right.

    Attributes:
      families: their names, sorted.
      family: of each question, an index into `families`.
      video: of each question, from 0.
      credit: by variant and seed.
    """

    families: tuple[str, ...]
    family: Int[np.ndarray, " Q"]
    video: Int[np.ndarray, " Q"]
    credit: Mapping[str, Mapping[int, Float[np.ndarray, " Q"]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds in percent.

    Attributes:
      value: the mean.
      low: lower end of the interval.
      high: upper end.
      by_seed: the numbers whose mean it is.
    """

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float]


def accuracies(answers: Answers, variant: str) -> dict[str, Estimate]:
    """Accuracy by family, and macro, of a variant."""
    seeds = sorted(answers.credit[variant])
    credit = np.stack([answers.credit[variant][seed] for seed in seeds])
    return _estimates(answers, credit, seeds)


def differences(answers: Answers, variant: str, baseline: str) -> dict[str, Estimate]:
    """Accuracy of a variant minus that of the baseline, over the seeds that both have."""
    ours, theirs = answers.credit[variant], answers.credit[baseline]
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return {}
    return _estimates(answers, np.stack([ours[seed] - theirs[seed] for seed in seeds]), seeds)


def _estimates(
    answers: Answers, credit: Float[np.ndarray, "S Q"], seeds: Sequence[int]
) -> dict[str, Estimate]:
    drawn = _resampled(answers, credit)
    whole = _means(answers, credit, np.ones((1, answers.video.max() + 1)))[0]  # [S, F + 1]
    out = {}
    for index, name in enumerate((*answers.families, MACRO)):
        low, high = interval(drawn[:, index])
        by_seed = {seed: 100 * float(whole[s, index]) for s, seed in enumerate(seeds)}
        out[name] = Estimate(
            value=float(np.mean(list(by_seed.values()))),
            low=100 * low,
            high=100 * high,
            by_seed=by_seed,
        )
    return out


def _resampled(
    answers: Answers, credit: Float[np.ndarray, "S Q"]
) -> Float[np.ndarray, "R F_plus_1"]:
    """Means over drawn seeds, on drawn videos; the draws depend on their numbers alone."""
    videos, seeds = int(answers.video.max()) + 1, len(credit)
    rng = np.random.default_rng(0)
    weights_RxV = rng.multinomial(videos, np.full(videos, 1 / videos), size=RESAMPLES)
    weights_RxS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    means_RxSxF = _means(answers, credit, weights_RxV.astype(float))
    return np.einsum("rs,rsf->rf", weights_RxS / seeds, means_RxSxF)


def _means(
    answers: Answers, credit: Float[np.ndarray, "S Q"], weights: Float[np.ndarray, "R V"]
) -> Float[np.ndarray, "R S F_plus_1"]:
    """Accuracy by seed and family with weighted videos, and macro as the last entry."""
    families, videos = len(answers.families), weights.shape[1]
    count_FxV = np.zeros((families, videos))
    np.add.at(count_FxV, (answers.family, answers.video), 1)
    right_SxFxV = np.zeros((len(credit), families, videos))
    for right_FxV, credit_Q in zip(right_SxFxV, credit, strict=True):
        np.add.at(right_FxV, (answers.family, answers.video), credit_Q)
    asked_RxF = weights @ count_FxV.T
    right_RxSxF = np.einsum("rv,sfv->rsf", weights, right_SxFxV, optimize=True)
    with np.errstate(invalid="ignore"):  # a family that was not drawn
        by_family = right_RxSxF / asked_RxF[:, None]
    return np.concatenate([by_family, np.nanmean(by_family, axis=2, keepdims=True)], axis=2)
