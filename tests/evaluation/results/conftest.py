"""Evaluations of two small benchmarks with every status, way of answering and kind of medium."""

import dataclasses

import pytest

from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks.base import (
    Evaluation,
    Grade,
    Metric,
    Question,
    Response,
    Scores,
)
from elva_jax.inference.scoring import Likelihood

SETTINGS = {
    "checkpoint": "runs/tiny",
    "step": 200,
    "weights_hash": "3fa9c01b22d4e680",
    "dtype": "float32",
    "frames": 8,
    "hybrid": None,
    "merging": True,
    "versions": {"elva_jax": "0.1.0", "jax": "0.10.2"},
}
STATUSES = ("right", "wrong", "unparsed", "unreadable")


def question(number, per_medium=3, duration=("short", "medium", "long")):
    return Question(
        key=f"q{number}",
        media=(Media(f"/data/v{number // per_medium}.mp4", "video"),),
        prompt=f"Question {number}?\nA. red\nB. blue",
        text=f"Question {number}?",
        options=("red", "blue"),
        answer=number % 2,
        categories={"duration": duration[number % len(duration)], "task": f"t{number % 2}"},
        extra={"subset": True, "weight": 1.5},
    )


def grade(item, status, way="generated"):
    unread = status == "unreadable"
    response = Response(
        question=item,
        text=None if unread else "A",
        likelihoods=() if unread else (Likelihood(-1.25, 2), Likelihood(-3.1, 3)),
        error="broken file" if unread else "",
        tokens=(100, 60, 30),
        seconds=0.125,
        finished=not unread,
    )
    return regrade(response, status)


def regrade(response, status):
    parsed = {"right": response.question.answer, "wrong": 1}.get(status)
    return Grade(response=response, parsed=parsed, status=status, credit=float(status == "right"))


def score(grades):
    """Accuracy over all questions, over each category, and the mean over tasks."""

    def mean(name, of):
        value = 100 * sum(g.credit for g in of) / len(of) if of else float("nan")
        return Metric(name=name, value=value, count=len(of))

    categories = {}
    for axis in ("duration", "task"):
        values = sorted({g.response.question.categories[axis] for g in grades})
        categories[axis] = {
            v: mean("accuracy", [g for g in grades if g.response.question.categories[axis] == v])
            for v in values
        }
    tasks = [metric.value for metric in categories["task"].values()]
    return Scores(
        main=mean("accuracy", grades),
        others=(Metric(name="mean of tasks", value=sum(tasks) / len(tasks), count=len(grades)),),
        categories=categories,
        statuses={s: sum(g.status == s for g in grades) for s in STATUSES},
    )


def evaluation(grades, name="videomme", title="Video-MME", **changes):
    """One with the ways generated and likelihood, whose responses are the same."""
    second = [regrade(g.response, "right" if g.status == "right" else "wrong") for g in grades]
    ways = {"generated": tuple(grades), "likelihood": tuple(second)}
    made = Evaluation(
        benchmark=name,
        title=title,
        scores={way: score(of) for way, of in ways.items()},
        grades=ways,
        settings={**SETTINGS, "prompt_version": "videomme-1"},
        seconds=1.5,
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def grades():
    return [grade(question(n), STATUSES[n % 4]) for n in range(24)]


@pytest.fixture
def run(grades):
    """Two benchmarks: one of videos, one of encoded images and open answers."""
    items = [
        Question(
            key=f"i{n}",
            media=(Media(f"/data/{n}.png", "image"), Media(("/a/1.jpg", "/a/2.jpg"), "video")),
            prompt="What?",
            text="What?",
            references=("a dog", "dög \ud800"),
            categories={"duration": "none", "task": "open"},
        )
        for n in range(4)
    ]
    responses = [Response(question=item, text='=a dog,\n"x"', tokens=(9,)) for item in items]
    opened = [
        dataclasses.replace(regrade(r, "right"), parsed="a dog", details={"judge_score": 4.0})
        for r in responses
    ]
    other = evaluation(opened, "gqa", "GQA")
    generated = {"generated": other.grades["generated"]}
    other = dataclasses.replace(
        other,
        grades=generated,
        scores={"generated": other.scores["generated"]},
        settings={**SETTINGS, "prompt_version": "gqa-3"},
    )
    return [evaluation(grades), other]
