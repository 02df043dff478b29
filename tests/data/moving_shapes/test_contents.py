"""Tests of the clips of motion, text and static pictures."""

import av
import numpy as np
import pytest

from elva_jax.cli import main
from elva_jax.tools.datasets.moving_shapes import contents


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return contents.write(tmp_path_factory.mktemp("contents"), 3)


def test_only_the_clips_of_motion_change_over_time(files):
    for group, paths in files.items():
        assert len({path.read_bytes() for path in paths}) == 3
        for path in paths:
            assert path.parent.name == group
            frames = frames_of(path).astype(int)
            assert len(frames) >= 8
            moved = (abs(frames[1:] - frames[:1]).max(axis=-1) > 60).sum(axis=(1, 2))
            assert moved.max() > 50 if group == "motion" else moved.max() == 0


def test_words_are_the_only_clips_without_color(files):
    def colors(path):
        picture = frames_of(path)[0].astype(int)
        return (np.ptp(picture, axis=-1) > 60).sum()

    assert max(map(colors, files["text"])) == 0
    assert min(map(colors, (*files["motion"], *files["static"]))) > 50
    for path in files["text"]:
        picture = frames_of(path)[0].astype(int).mean(axis=-1)
        ink = abs(picture - np.median(picture)) > 60
        assert 0.03 < ink.mean() < 0.4
        assert not (ink[:, 0] | ink[:, -1]).any(), "a word is cut off"


def test_the_command_writes_the_same_files(files, tmp_path, capsys):
    assert main(["data", "contents", "--out", str(tmp_path / "new"), "--count", "3"]) == 0
    assert "motion: 3 clips" in capsys.readouterr().out
    for group, paths in files.items():
        for path in paths:
            assert (tmp_path / "new" / group / path.name).read_bytes() == path.read_bytes()
