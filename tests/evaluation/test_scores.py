"""Accuracies against a count by hand, standard errors against the binomial formula."""

import math

import numpy as np

from elva_jax.evaluation.scores import summarize


def test_accuracy_and_macro_by_hand():
    credit = [1, 0, 1, 1, 0.25, 0.75, 0]
    family = ["b", "b", "b", "b", "a", "a", "a"]
    video = ["v1", "v2", "v3", "v4", "v1", "v2", "v3"]
    families, macro = summarize(credit, family, video)
    assert list(families) == ["a", "b"]
    assert math.isclose(families["b"].accuracy, 0.75)
    assert math.isclose(families["a"].accuracy, 1 / 3)
    assert (families["a"].count, families["b"].count, macro.count) == (3, 4, 7)
    assert math.isclose(macro.accuracy, (0.75 + 1 / 3) / 2)


def test_stderr_is_binomial_for_one_question_a_video():
    n = 400
    credit = (np.arange(n) % 4 == 0).astype(float)
    families, _ = summarize(credit, ["x"] * n, [str(i) for i in range(n)], resamples=4000)
    assert math.isclose(families["x"].stderr, math.sqrt(0.25 * 0.75 / n), rel_tol=0.06)


def test_stderr_grows_when_questions_share_a_video():
    """Ten copies of each question about a video carry no more information than one."""
    n = 200
    right = (np.arange(n) % 2).astype(float)
    once, _ = summarize(right, ["x"] * n, [str(i) for i in range(n)], resamples=4000)
    tenfold, _ = summarize(
        np.repeat(right, 10),
        ["x"] * 10 * n,
        [str(i) for i in np.repeat(np.arange(n), 10)],
        resamples=4000,
    )
    assert math.isclose(tenfold["x"].stderr, once["x"].stderr, rel_tol=0.06)


def test_rare_family_has_a_finite_error_and_repeats():
    args = ([1, 1, 0, 1], ["a", "a", "a", "rare"], ["1", "2", "3", "3"])
    first, second = summarize(*args), summarize(*args)
    assert first == second
    assert math.isfinite(first[0]["rare"].stderr)
    assert math.isfinite(first[1].stderr)


def test_nothing_asked():
    families, macro = summarize([], [], [])
    assert families == {}
    assert macro.count == 0
    assert math.isnan(macro.accuracy)
