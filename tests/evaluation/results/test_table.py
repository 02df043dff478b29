"""The table of benchmarks is whole at any width."""

import dataclasses
import io

import pytest
from rich.console import Console

from elva_jax.evaluation.benchmarks.base import Metric
from elva_jax.evaluation.results import table


def printed(run, width):
    console = Console(width=width, record=True, file=io.StringIO())
    table.print_scores(run, console)
    return console.export_text()


def enlarged(run, count):
    """The same with a count, an interval and a long category."""

    def large(metric):
        return dataclasses.replace(metric, count=count, low=11.1, high=99.9)

    scores = run[0].scores["generated"]
    tasks = {"a category with a name that is far too long for a narrow terminal" * 2: scores.main}
    scores = dataclasses.replace(
        scores,
        main=large(scores.main),
        statuses={"unparsed": count, "unreadable": count, "unjudged": count},
        categories={
            "duration": {k: large(v) for k, v in scores.categories["duration"].items()},
            "task": {**tasks, "other": large(scores.main)},
        },
    )
    return [dataclasses.replace(run[0], scores={"generated": scores}), *run[1:]]


@pytest.mark.parametrize("count", [1931, 10_000_000])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_cut(run, count, width):
    text = printed(enlarged(run, count), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert text.split().count(str(count)) >= 7
    assert text.count("11.1–99.9") == 1 + 3 + 1


def test_names_from_files_are_plain_text(run):
    scores = run[0].scores["generated"]
    hostile = {"[/red]": scores.main, "a\x1b[2Jb\nc": scores.main}
    scores = dataclasses.replace(scores, categories={"[bold]axis": hostile})
    run[0] = dataclasses.replace(run[0], title="[link=x]", scores={"generated": scores})
    text = printed(run, 80)
    assert all(part in text for part in ("[/red]", "a\ufffd[2Jb c", "[bold]axis", "[link=x]"))
    assert "\x1b" not in text


def test_scores_statuses_and_settings(run):
    text = printed(run, 80)
    rows = [line.split() for line in text.splitlines()]
    assert "Video-MME generated accuracy 25.0 100 – 24" in [" ".join(row[:7]) for row in rows]
    assert "GQA generated accuracy 100.0 100 – 4" in [" ".join(row[:7]) for row in rows]
    assert ["short", "8", "25.0"] in [row[:3] for row in rows]
    words = " ".join(text.split())
    for part in (
        "Video-MME by duration, of 100", "weights_hash 3fa9c01b22d4e680", "frames 8",
        "dtype float32", "merging yes", "Video-MME: prompt_version videomme-1",
        "GQA: prompt_version gqa-3",
    ):  # fmt: skip
        assert part in words
    assert "unreadable" in words
    assert "GQA by task" not in words  # of one value only


def test_one_name_of_all_numbers_is_the_head(run):
    scores = dataclasses.replace(run[1].scores["generated"], others=())
    text = printed([dataclasses.replace(run[1], scores={"generated": scores})], 80)
    rows = [line.split() for line in text.splitlines()]
    assert ["benchmark", "answer", "accuracy", "of", "95", "%", "n", "unparsed"] in rows


@pytest.mark.parametrize(
    ("value", "maximum", "expected"),
    [(60.04, 100, "60.0"), (3.524, 5, "3.52"), (0.33333, 1, "33.3"), (1520.44, 2000, "1520.4"),
     (float("nan"), 100, "–")],
)  # fmt: skip
def test_decimals_follow_the_scale(value, maximum, expected):
    assert table.number(Metric(name="x", value=value, count=1, maximum=maximum)) == expected


def test_shares_are_in_percent_and_every_scale_is_said(run):
    scores = run[1].scores["generated"]
    others = (
        Metric(name="points", value=3.5, count=4, maximum=5.0),
        Metric(name="sum", value=1520.4, count=4, maximum=2000.0),
        Metric(name="share", value=0.5, count=4, maximum=1.0, low=0.25, high=0.75),
    )
    scores = dataclasses.replace(scores, others=others)
    text = printed([dataclasses.replace(run[1], scores={"generated": scores})], 100)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    for row in ("points 3.50 5 –", "sum 1520.4 2000 –", "share 50.0 100 25.0–75.0"):
        assert f"GQA generated {row} 4 0" in rows
    assert "of: the largest possible score" in text
