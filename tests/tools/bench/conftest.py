"""Fixture that runs benchmarks through the console command."""

import json

import pytest

from elva_jax.cli import main


@pytest.fixture
def bench(capsys, tmp_path):
    """`bench(*words)` returns exit status, output, errors, and the report if there is one."""

    def run(*words):
        file = tmp_path / "report" / "bench.json"
        try:
            status = main(["bench", *words, "--json", str(file)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err, json.loads(file.read_text()) if file.exists() else None

    return run
