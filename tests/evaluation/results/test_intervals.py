"""Intervals against formulas, both paths against each other, and pairs of questions."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks.base import Grade, Metric, Question, Response, Scores, scored
from elva_jax.evaluation.results import resampling
from elva_jax.evaluation.results.intervals import interval, with_intervals

spec = importlib.util.spec_from_file_location("made", Path(__file__).with_name("conftest.py"))
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)


def random_grades(number, per_medium, seed=0, share=0.6):
    rng = np.random.default_rng(seed)
    statuses = np.where(rng.random(number) < share, "right", "wrong")
    return [made.grade(made.question(n, per_medium), str(s)) for n, s in enumerate(statuses)]


def test_fast_and_slow_paths_agree():
    grades = random_grades(90, 3)
    fast = resampling.replicate(grades, made.score, resamples=40)
    slow = resampling.replicate(grades, made.score, resamples=40, means=False)
    assert list(fast) == list(slow) == list(resampling.metrics_of(made.score(grades)))
    for name, values in slow.items():
        assert values.shape == (40,)
        np.testing.assert_allclose(fast[name], values, rtol=1e-12)
    calls = []
    resampling.replicate(grades, lambda g: calls.append(1) or made.score(g))
    assert len(calls) == 1 + resampling.PROBES  # the mean of tasks, too, is found to be a mean


def test_mean_over_independent_questions_has_the_binomial_error():
    grades = random_grades(400, 1)
    values = resampling.replicate(grades, made.score, resamples=4000)["", "", "accuracy"]
    p = np.mean([g.credit for g in grades])
    assert values.std() == pytest.approx(100 * math.sqrt(p * (1 - p) / 400), rel=0.06)
    low, high = interval(values)
    assert low < 100 * p < high


def test_questions_about_one_medium_are_drawn_together():
    """Four copies of each answer carry no more information than one."""
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random(100) < 0.5, 4)
    grades = [
        made.grade(made.question(n, 4), "right" if r else "wrong") for n, r in enumerate(right)
    ]
    values = resampling.replicate(grades, made.score, resamples=4000)["", "", "accuracy"]
    p = right.mean()
    assert values.std() == pytest.approx(100 * math.sqrt(p * (1 - p) / 100), rel=0.06)


def test_intervals_stand_beside_every_number(run, grades):
    found = with_intervals(run[0], made.score, resamples=100)
    again = with_intervals(run[0], made.score, resamples=100)
    for way, scores in found.scores.items():
        assert scores == again.scores[way]  # the same seed, and no NaN
        for metric in (scores.main, *scores.others, *scores.categories["task"].values()):
            assert metric.low <= metric.value <= metric.high
        assert scores.main.low < scores.main.high
    assert found.grades is run[0].grades


def test_unreadable_media_are_in_no_score_and_no_interval():
    whole = random_grades(90, 3)
    lost = [made.grade(made.question(900 + n, 1), "unreadable") for n in range(30)]
    found = []
    for grades in (whole, whole + lost):
        scores = {"generated": scored(made.score, grades)}
        evaluation = dataclasses.replace(made.evaluation(grades), scores=scores)
        found.append(with_intervals(evaluation, made.score, resamples=50).scores["generated"])
    without, beside = found
    assert beside.main == without.main
    assert beside.main.count == 90
    assert beside.categories == without.categories
    assert beside.statuses["unreadable"] == 30


def test_few_media_have_no_interval(grades):
    evaluation = made.evaluation(grades[:12])
    main = with_intervals(evaluation, made.score, resamples=50).scores["generated"].main
    assert math.isnan(main.low)
    assert math.isnan(main.high)


def pair(number, right):
    """Two questions about an image, as in MME."""
    found = []
    for k, one in enumerate(right):
        item = Question(
            key=f"p{number}-{k}", media=(Media(f"/i/{number}.png", "image"),), prompt="?",
            text="?", options=("yes", "no"), answer=k, extra={"group": str(number)},
        )  # fmt: skip
        status = "right" if one else "wrong"
        found.append(Grade(response=Response(question=item), parsed=0, status=status, credit=one))
    return found


def pairs_right(grades):
    """Percent of the images with both questions right."""
    groups = {}
    for grade in grades:
        groups.setdefault(grade.response.question.extra["group"], []).append(grade.credit)
    assert all(len(of) == 2 for of in groups.values())
    value = 100 * np.mean([all(of) for of in groups.values()])
    return Scores(main=Metric(name="accuracy+", value=float(value), count=len(grades)))


def test_pairs_stay_pairs_where_a_medium_is_drawn_twice():
    rng = np.random.default_rng(2)
    right = rng.random((120, 2)) < 0.7
    grades = [g for n, both in enumerate(right) for g in pair(n, [float(x) for x in both])]
    values = resampling.replicate(grades, pairs_right, resamples=400, means=False)
    values = values["", "", "accuracy+"]
    fast = resampling.replicate(grades, pairs_right, resamples=400)["", "", "accuracy+"]
    np.testing.assert_allclose(fast, values, rtol=1e-12)
    p = right.all(1).mean()
    assert values.mean() == pytest.approx(100 * p, abs=1.0)
    assert values.std() == pytest.approx(100 * math.sqrt(p * (1 - p) / 120), rel=0.1)


def test_questions_without_a_reference_do_not_count():
    """The score leaves them out; the mean of all credits is no candidate then."""

    def score(grades):
        counted = [g for g in grades if g.status != "no_reference"]
        value = 100 * float(np.mean([g.credit for g in counted])) if counted else float("nan")
        return Scores(main=Metric(name="accuracy", value=value, count=len(counted)))

    grades = random_grades(60, 2)
    grades = [
        dataclasses.replace(g, status="no_reference", credit=0.0) if n % 3 == 0 else g
        for n, g in enumerate(grades)
    ]
    fast = resampling.replicate(grades, score, resamples=50)["", "", "accuracy"]
    slow = resampling.replicate(grades, score, resamples=50, means=False)["", "", "accuracy"]
    np.testing.assert_allclose(fast, slow, rtol=1e-12)


def test_categories_without_questions_have_no_interval_and_cost_nothing():
    def score(grades):
        found = made.score(grades)
        empty = Metric(name="accuracy", value=float("nan"), count=0)
        return dataclasses.replace(found, categories={**found.categories, "x": {"none": empty}})

    calls = []
    grades = random_grades(40, 2)
    found = resampling.replicate(grades, lambda g: calls.append(1) or score(g), resamples=60)
    assert len(calls) == 1 + resampling.PROBES
    assert np.isnan(found["x", "none", "accuracy"]).all()
    assert len(found["x", "none", "accuracy"]) == 60


def test_means_over_flagged_questions_and_constants_are_found():
    def score(grades):
        hard = [g.credit for g in grades if g.response.question.extra["hard"]]
        value = 100 * float(np.mean(hard)) if hard else float("nan")
        main = Metric(name="accuracy (hard)", value=value, count=len(hard))
        return Scores(main=main, others=(Metric(name="tasks", value=7.0, count=len(grades)),))

    grades = []
    for n, grade in enumerate(random_grades(60, 2)):
        question = dataclasses.replace(grade.response.question, extra={"hard": n % 5 == 0})
        response = dataclasses.replace(grade.response, question=question)
        grades.append(dataclasses.replace(grade, response=response))
    calls = []
    fast = resampling.replicate(grades, lambda g: calls.append(1) or score(g), resamples=50)
    assert len(calls) == 1 + resampling.PROBES
    slow = resampling.replicate(grades, score, resamples=50, means=False)
    for name in slow:
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-12)


def test_judged_scores_are_means_of_details():
    def score(grades):
        value = float(np.mean([g.details["judge_score"] for g in grades]))
        return Scores(main=Metric(name="score", value=value, count=len(grades), maximum=5.0))

    rng = np.random.default_rng(3)
    grades = [
        dataclasses.replace(g, details={"judge_score": float(rng.integers(6))})
        for g in random_grades(50, 1)
    ]
    calls = []
    values = resampling.replicate(grades, lambda g: calls.append(1) or score(g))
    assert len(calls) == 1 + resampling.PROBES
    low, high = interval(values["", "", "score"])
    assert 0 < low < score(grades).main.value < high < 5
