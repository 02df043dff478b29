"""The comparison of two models on the questions that both were asked."""

import dataclasses
import importlib.util
import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from elva_jax.evaluation.results import compare_table, paired, resampling

spec = importlib.util.spec_from_file_location("made", Path(__file__).with_name("conftest.py"))
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)


def graded(right, **changes):
    grades = [
        made.grade(made.question(n), "right" if one else "wrong") for n, one in enumerate(right)
    ]
    return made.evaluation(grades, **changes)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 5), (0, 8), (3, 12), (40, 25), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    from scipy.stats import binomtest  # takes a second, also where tests are only collected

    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert paired.mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert paired.mcnemar(c, b) == pytest.approx(expected, rel=1e-9)


def test_differences_counts_and_categories():
    rng = np.random.default_rng(0)
    first, second = rng.random(90) < 0.5, rng.random(90) < 0.8
    a, b = graded(first), graded(second)
    (generated, likelihood) = paired.compare(a, b, made.score, resamples=200)
    assert (generated.way, likelihood.way) == ("generated", "likelihood")
    assert (generated.common, generated.only_a, generated.changed) == (90, (), ())
    main = generated.differences[0]
    assert (main.axis, main.number) == ("", "accuracy")
    assert main.difference == pytest.approx(100 * (second.mean() - first.mean()))
    assert (main.only_a, main.only_b) == (
        int((first & ~second).sum()), int((second & ~first).sum())
    )  # fmt: skip
    assert main.low < main.difference < main.high
    by_name = {(d.axis, d.category): d for d in generated.differences}
    assert len(by_name) == 1 + 3 + 2
    short = by_name["duration", "short"]
    assert short.difference == pytest.approx(100 * (second[::3].mean() - first[::3].mean()))
    assert short.only_b == int((second & ~first)[::3].sum())
    assert short.p == paired.mcnemar(short.only_a, short.only_b)


def test_equal_answers_differ_by_exactly_nothing():
    right = np.arange(30) % 3 == 0
    row = paired.compare(graded(right), graded(right), made.score)[0].differences[0]
    assert (row.difference, row.low, row.high, row.p) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_narrows_the_interval():
    """Two models that differ in few answers are told apart, though their own intervals overlap."""
    rng = np.random.default_rng(4)
    first = rng.random(600) < 0.5
    second = first | (rng.random(600) < 0.08)
    row = paired.compare(graded(first), graded(second), made.score)[0].differences[0]
    assert row.low > 0
    own = resampling.replicate(graded(first).grades["generated"], made.score)["", "", "accuracy"]
    assert row.high - row.low < np.ptp(np.quantile(own, [0.025, 0.975]))


def test_questions_of_one_side_are_named_and_left_out():
    a, b = graded([True] * 12), graded([False] * 10)
    changed = b.grades["generated"][0]
    question = dataclasses.replace(changed.response.question, text="Another?")
    response = dataclasses.replace(changed.response, question=question)
    moved = dataclasses.replace(
        b.grades["generated"][1].response.question,
        media=(made.Media("/elsewhere/v0.mp4", "video"),),
    )
    grades = list(b.grades["generated"])
    grades[0] = dataclasses.replace(changed, response=response)
    grades[1] = dataclasses.replace(
        grades[1], response=dataclasses.replace(grades[1].response, question=moved)
    )
    b = dataclasses.replace(b, grades={"generated": tuple(grades)})
    (found,) = paired.compare(a, b, made.score, resamples=20)
    assert (found.common, found.only_a, found.only_b) == (9, ("q10", "q11"), ())
    assert found.changed == ("q0",)
    assert found.differences[0].only_a == 9


def test_questions_that_one_side_could_not_ask_are_left_out():
    right = np.arange(24) % 2 == 0
    a, b = graded(right), graded(right)
    grades = list(b.grades["generated"])
    grades[0] = made.grade(made.question(0), "unreadable")
    b = dataclasses.replace(b, grades={"generated": tuple(grades)})
    found = paired.compare(a, b, made.score, resamples=20)
    (row, *_) = found[0].differences
    assert (found[0].common, found[0].unreadable, found[0].changed) == (23, ("q0",), ())
    assert (row.a.count, row.difference, row.only_a) == (23, 0.0, 0)
    console = Console(width=80, record=True, file=io.StringIO())
    compare_table.print_comparisons(found, ("a.json", "b.json"), console)
    assert "1 left out, whose media A or B could not read: q0" in console.export_text()


def test_mean_credit_where_the_benchmark_is_not_known():
    a, b = graded([True] * 9 + [False] * 9), graded([True] * 12 + [False] * 6)
    row = paired.compare(a, b, resamples=50)[0].differences[0]
    assert (row.number, row.a.value, row.b.value) == ("mean credit", 50.0, pytest.approx(200 / 3))
    assert math.isfinite(row.low)


def test_files_of_another_scale_are_converted_and_it_is_said():
    """As if an older version had stored B's scores as shares."""
    a, b = graded([True] * 9 + [False] * 9), graded([True] * 12 + [False] * 6)
    shares = dataclasses.replace(b.scores["generated"].main, value=2 / 3, maximum=1.0)
    scores = dataclasses.replace(b.scores["generated"], main=shares)
    b = dataclasses.replace(b, scores={**b.scores, "generated": scores})
    found, other = paired.compare(a, b, made.score, resamples=20)
    row = found.differences[0]
    assert (row.a.value, row.b.value) == (50.0, pytest.approx(200 / 3))
    assert found.converted == (("accuracy", 100.0, 1.0, 100.0),)
    assert other.converted == ()
    console = Console(width=100, record=True, file=io.StringIO())
    compare_table.print_comparisons([found], ("a.json", "b.json"), console)
    text = console.export_text()
    assert "accuracy: of 100 in A, of 1 in B; both are shown of 100" in text
    assert not paired.compare(a, a, made.score, resamples=20)[0].converted


def test_few_media_have_no_interval():
    row = paired.compare(graded([True] * 12), graded([False] * 12), made.score)[0].differences[0]
    assert (row.difference, row.only_a) == (-100.0, 12)
    assert math.isnan(row.low)
    assert math.isnan(row.high)


def test_settings_that_differ_come_first_and_nothing_is_cut():
    a = graded(np.arange(24) % 2 == 0)
    settings = {**a.settings, "frames": 16, "merging": False, "judge": "x" * 70}
    b = graded(np.arange(24) % 3 == 0, settings=settings)
    console = Console(width=80, record=True, file=io.StringIO())
    comparisons = paired.compare(a, b, made.score, resamples=50)
    compare_table.print_comparisons(comparisons, ("a.json", "b.json"), console)
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    words = " ".join(text.split())
    assert "frames: A 8, B 16" in words
    assert "merging: A yes, B no" in words
    assert "judge: A not known, B x" in words
    assert "x" * 70 in "".join(text.split())
    assert "dtype" not in text
    assert text.index("frames: A 8") < text.index("B-A")
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["duration"] == ["n", "A", "B", "of", "B-A", "95", "%", "only", "A/B", "p"]
    assert rows["short"][:4] == ["8", "50.0", "100.0", "100"]
    assert text.count("all settings are the same") == 0
