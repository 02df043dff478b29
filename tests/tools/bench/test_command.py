"""Tests of the common parts of all benchmarks: help, and one-line errors."""

import pytest

from elva_jax.cli import main
from elva_jax.tools.bench.command import BENCHES


@pytest.mark.parametrize("words", [[], *([name] for name, _, _ in BENCHES)])
def test_help_has_examples_and_every_benchmark_writes_json(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words, "--help"])
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    assert "  elva bench " in out
    assert all(name in out for name, _, _ in BENCHES) if not words else "--json FILE" in out


@pytest.mark.parametrize(
    ("words", "message"), [([], "BENCH"), (["flop"], "invalid choice: 'flop'")]
)
def test_misuse_lists_the_benchmarks(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
