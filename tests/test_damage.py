"""Every file of a saved run that a command needs, damaged in turn: one line, and no result."""

import shutil
import tarfile
from pathlib import Path

import pytest

from elva_jax.cli import main

ARCHIVE = Path(__file__).parent / "fixtures" / "run_of_3e843db.tar.xz"
STEP = "sft/checkpoints/4"
NEEDED = ("config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
DAMAGES = {
    "half": lambda file, data: file.write_bytes(data[: len(data) // 2]),
    "empty": lambda file, data: file.write_bytes(b""),
    "zeros": lambda file, data: file.write_bytes(bytes(len(data))),
    "folder": lambda file, data: file.mkdir(),
}


COMMANDS = {
    "generate": "generate --checkpoint {run} --video no.mp4 --prompt What? --frames 2",
    "evaluate": "evaluate --checkpoint {run} --data-dir no.mp4",
    "export": "convert export {run} {out}",
    "check": "convert check {run} {run}",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def needed(run):
    step = run / STEP
    weights = [
        file
        for part in ("meta", "params")
        for file in (step / part).rglob("*")
        if file.is_file() and file.name != "_CHECKPOINT_METADATA"
    ]
    return [*(run / name for name in NEEDED), step / "checksums.json", *sorted(weights)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_run_is_one_line(run, tmp_path, command, damage, capfd):
    words = COMMANDS[command].format(run=run, out=tmp_path / "out").split()
    files = needed(run)
    assert len(files) > 15
    for file in files:
        data = file.read_bytes()
        file.unlink()
        DAMAGES[damage](file, data)
        try:
            status = main(words)
        finally:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
            file.write_bytes(data)
        lines = capfd.readouterr().err.splitlines()
        assert status == 1, file
        assert len(lines) == 1, (file, lines)
        # The run, the step or the file is named; what is read later is not.
        assert str(run) in lines[0], (file, lines)
        assert "no.mp4" not in lines[0], (file, lines)
        assert not (tmp_path / "out").exists(), file
