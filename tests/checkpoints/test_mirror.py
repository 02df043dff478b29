"""A run's copy on other storage."""

import json
import shutil

import pytest

from elva_jax.checkpoints.mirror import Mirror, restore_from_mirror


@pytest.fixture
def run(tmp_path):
    """A run's folder, and save(step), which creates a step of its stage and returns its path."""
    workdir = tmp_path / "run"
    (workdir / "tokenizer").mkdir(parents=True)
    (workdir / "tokenizer" / "vocab.json").write_text("{}")
    (workdir / "config.json").write_text('{"seed": 0}')

    def save(step):
        folder = workdir / "video" / "checkpoints" / str(step)
        (folder / "params").mkdir(parents=True)
        (folder / "params" / "data").write_text(f"weights of {step}")
        (workdir / "video" / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
        return folder

    return workdir, save


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_lost_workdir_is_restored(run, tmp_path):
    workdir, save = run
    copy, said = tmp_path / "other", []
    with Mirror(str(copy), workdir, keep=2, report=said.append) as mirror:
        mirror.copy(save(4))
    with Mirror(str(copy), workdir, keep=2, report=said.append) as mirror:
        mirror.copy(save(8))
    before = contents(workdir)
    assert contents(copy) == before
    assert not restore_from_mirror(str(copy), workdir)  # nothing is missing
    shutil.rmtree(workdir)
    (copy / "video" / "checkpoints" / "9.unfinished").mkdir()
    assert restore_from_mirror(str(copy), workdir)
    assert contents(workdir) == before
    assert not (workdir / "video" / "checkpoints" / "9.unfinished").exists()
    assert said == []


def test_old_steps_are_removed_and_overtaken_ones_skipped(run, tmp_path):
    workdir, save = run
    for step in (4, 8, 12):
        with Mirror(str(tmp_path / "other"), workdir, keep=2, report=print) as mirror:
            mirror.copy(save(step))
    steps = tmp_path / "other" / "video" / "checkpoints"
    assert sorted(path.name for path in steps.iterdir()) == ["12", "8"]
    mirror = Mirror(str(tmp_path / "other"), workdir, keep=2, report=print)
    step = save(16)
    mirror._newest[step.parent] = workdir / "none"
    mirror._copy(step)
    mirror.__exit__()
    assert not (steps / "16").exists()


def test_a_failed_copy_is_reported(run, tmp_path):
    workdir, save = run
    (tmp_path / "other").write_text("a file")
    said = []
    with Mirror(str(tmp_path / "other"), workdir, keep=2, report=said.append) as mirror:
        mirror.copy(save(4))
    (line,) = said
    assert "other: step 4 could not be copied there (" in line
    assert line.endswith("; training continues")


def test_without_a_folder_there_is_no_copy(run):
    workdir, save = run
    with Mirror("", workdir, keep=2, report=print) as mirror:
        mirror.copy(save(4))
    assert not restore_from_mirror("", workdir / "new")
