"""`elva bench serve`: what it reports about given times; the GPU report's tests run it whole."""

import numpy as np
import pytest

from elva_jax.inference.continuous import Done, Seconds
from elva_jax.inference.prefilled import Answer
from elva_jax.tools.bench.serve import Spent, _medians, _summary, show


def summary(first, queue, cpu=1.0):
    answer = Answer(text="", tokens=(1, 2), finished=False)
    done = [
        Done(
            finish_reason="length",
            answer=answer,
            completion_tokens=2,
            seconds=Seconds(first_token=f, queue=q, decode=0.5),
        )
        for f, q in zip(first, queue, strict=True)
    ]
    return _summary(Spent(seconds=2.0, cpu=cpu), done)


def test_percentiles_are_those_of_numpy():
    rng = np.random.default_rng(0)
    queue = rng.random(41)
    first = queue + rng.random(41)
    found = summary(first, queue, cpu=0.5)
    for name, values in (("first", first), ("queue", queue), ("rest", first - queue)):
        for share in (50, 95, 100):
            assert found[f"{name}_{share}"] == pytest.approx(np.percentile(values, share))
    assert found["tokens_per_second"] == 41
    assert found["tokens_per_cpu_second"] == 164


@pytest.mark.parametrize(
    ("base", "queue", "times", "words"),
    [(8.0, 0.5, "4.00", ("missed", "missed")), (6.0, 0.75, "5.33", ("reached", "reached"))],
)
def test_goals_are_judged_by_the_medians_of_runs(base, queue, times, words):
    """32 tokens per second; a first token after 1 s, alone after 0.125 s."""
    runs = [summary([1.0] * 32, [queue] * 32)] * 2
    report = {
        "machine": {"device": "cpu"},
        **dict.fromkeys(("requests", "videos", "prefix_tokens", "tokens", "slots"), 1),
        "warm_up_seconds": 1.0,
        "compilations": 0,
        "same": True,
        "one_by_one": base,
        "one_by_one_cpu": base,
        "clients": {"1": _medians([summary([0.125], [0.0])]), "16": _medians(runs)},
    }
    *_, throughput, median, last = show(report).splitlines()
    assert throughput == f"16 clients: {times} times the tokens per second; goal 5: {words[0]}"
    bound = 250.0 + 1e3 * queue
    assert median.endswith(f"+ queue {1e3 * queue:.1f} = {bound:.1f} ms: {words[1]}")
    assert last.startswith("first token, 95 %: 1000.0 ms;")
