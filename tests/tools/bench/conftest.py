"""The console command's benches, as a user runs them."""

import json

import pytest

from elva_jax.cli import main


@pytest.fixture
def bench(capsys, tmp_path):
    """`bench(*words)`: exit status, standard output, standard error, and the JSON file where the bench wrote one."""

    def run(*words):
        file = tmp_path / "report" / "bench.json"
        try:
            status = main(["bench", *words, "--json", str(file)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err, json.loads(file.read_text()) if file.exists() else None

    return run
