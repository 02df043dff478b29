"""Numbers from sums against the benchmarks' own score functions on every resample."""

import dataclasses

import numpy as np
import pytest

from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks import mme, pope, video_chatgpt
from elva_jax.evaluation.benchmarks.base import Response
from elva_jax.evaluation.benchmarks.open_answers import JUDGED, grade_open, open_question
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS
from elva_jax.evaluation.benchmarks.yes_no import yes_no_question
from elva_jax.evaluation.results import paired, resampling

ANSWER = "a red cat"
ANSWERS = ("yes", "Yes, it is.", "no", "No", "perhaps", "")


def graded(benchmark, key, image, label, answer, task, **extra):
    axis = "task" if benchmark is mme.BENCHMARK else "category"
    media = [Media(image, "image")]
    question = yes_no_question(key, media, "?", label, categories={axis: task}, extra=extra)
    error = "broken" if answer is None else ""
    return benchmark.grade(Response(question=question, text=answer, error=error))


def of_mme(rng, images=70):
    """One to three questions about an image, some without a public answer; tasks with none."""
    found = []
    tasks = rng.choice([*mme.TASKS[:9], *mme.COGNITION[:2], "a new task"], images)
    for image, task in enumerate(map(str, tasks)):
        for number in range(rng.choice([1, 2, 2, 2, 3])):
            label, answer = rng.choice(["yes", "no"]), rng.choice([*ANSWERS, "broken"])
            label = None if rng.random() < 0.05 else str(label)
            answer = None if answer == "broken" else str(answer)
            key, group = f"{task}/{image}/{number}", f"{task}/{image}"
            about = f"{image % 60}.jpg"  # some images are in two tasks
            found.append(graded(mme.BENCHMARK, key, about, label, answer, task, group=group))
    return found


def of_pope(rng, questions=150):
    found = []
    for number in range(questions):
        kind = str(rng.choice([*pope.KINDS[:2], "a new kind"]))
        answer = rng.choice([*ANSWERS, "broken"])
        answer = None if answer == "broken" else str(answer)
        label = None if rng.random() < 0.05 else str(rng.choice(["yes", "no"]))
        image = f"{rng.integers(40)}.jpg"
        found.append(graded(pope.BENCHMARK, f"{kind}/{number}", image, label, answer, kind))
    return found


def of_video_chatgpt(rng, questions=120):
    """Single questions and pairs, of which the judge has given some, or some aspects, no points."""
    found = []
    for number in range(questions):
        part = str(rng.choice(list(video_chatgpt.ASPECTS)))
        aspects = video_chatgpt.ASPECTS[part]
        points = {aspect: float(rng.integers(6)) for aspect in aspects if rng.random() < 0.9}
        for place in range(2 if part == "consistency" else 1):
            question = open_question(
                f"{part}/{number}/{place}", [Media(f"{number % 40}.mp4", "video")], "?", [ANSWER],
                extra={"group": f"{part}/{number}", "aspects": aspects},
            )  # fmt: skip
            error = "broken" if rng.random() < 0.1 else ""
            text = str(rng.choice(["red", ANSWER, "a dog"]))
            grade = grade_open(Response(question=question, text=text, error=error))
            if number % 3:
                grade = dataclasses.replace(grade, details={**grade.details, JUDGED: 1.0, **points})
            found.append(grade)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [of_mme, of_pope, of_video_chatgpt])
def test_sums_give_the_numbers_of_the_score_function(make, seed):
    benchmark = BENCHMARKS[make.__name__.removeprefix("of_")]
    grades = make(np.random.default_rng(seed))
    calls = []
    fast = resampling.replicate(
        grades, lambda g: calls.append(1) or benchmark.score(g), tally=benchmark.tally, resamples=40
    )
    assert len(calls) == 1
    slow = resampling.replicate(grades, benchmark.score, resamples=40, means=False)
    assert list(fast) == list(slow)
    for name, values in slow.items():
        np.testing.assert_allclose(fast[name], values, rtol=1e-12, err_msg=str(name))
    assert len({round(value, 9) for value in slow[next(iter(slow))]}) > 10


def test_an_aspect_that_few_answers_have_may_be_missing_in_a_resample():
    """As may the judge: then there is no mean of aspects."""
    few = of_video_chatgpt(np.random.default_rng(1), 4)
    score, tally = video_chatgpt.score, video_chatgpt.tally
    fast = resampling.replicate(few, score, tally=tally, resamples=200)
    slow = resampling.replicate(few, score, resamples=200, means=False)
    for name, values in slow.items():
        np.testing.assert_allclose(fast[name], values, rtol=1e-12, err_msg=str(name))
    main = slow["", "", video_chatgpt.MAIN]
    assert 0 < np.isnan(main).sum() < 200
    assert tally([dataclasses.replace(grade, details={}) for grade in few]) is None


def test_questions_about_one_image_from_two_files_are_not_summed():
    grades = of_mme(np.random.default_rng(0), 20)
    pair = next(n for n, g in enumerate(grades) if g.response.question.key.endswith("/1"))
    question = dataclasses.replace(
        grades[pair].response.question, media=(Media("copy.jpg", "image"),), answer=0
    )
    response = dataclasses.replace(grades[pair].response, question=question)
    grades[pair] = mme.BENCHMARK.grade(response)
    grades[pair - 1] = dataclasses.replace(grades[pair - 1], status="wrong", credit=0.0)
    assert mme.tally(grades) is None
    both = [
        resampling.replicate(grades, mme.score, tally=tally, resamples=30)
        for tally in (mme.tally, None)
    ]
    for name, values in both[1].items():
        np.testing.assert_array_equal(both[0][name], values)


def test_comparisons_are_the_same_from_sums():
    rng = np.random.default_rng(5)
    first = of_pope(rng, 80)
    second = [
        pope.BENCHMARK.grade(dataclasses.replace(g.response, text=str(rng.choice(ANSWERS))))
        for g in first
    ]
    with_sums, without = (
        paired._differences(first, second, pope.score, tally, 60) for tally in (pope.tally, None)
    )
    assert [d.number for d in with_sums] == [d.number for d in without]
    for one, other in zip(with_sums, without, strict=True):
        np.testing.assert_allclose((one.low, one.high), (other.low, other.high), atol=1e-9)
