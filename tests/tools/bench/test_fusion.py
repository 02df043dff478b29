"""Tests of `elva bench fusion` without a model: groups, statistics, table and figure."""

import numpy as np
import pytest
from PIL import Image

from elva_jax.errors import DataError
from elva_jax.tools.bench import fusion
from elva_jax.tools.bench.fusion_groups import read_groups, summarize


def weights_of(values):
    return [{"image": value, "video": 1 - value} for value in values]


def test_means_have_the_bootstrap_interval_of_their_videos():
    values = np.random.default_rng(3).normal(0.4, 0.05, 80)
    found = summarize(weights_of(values))
    assert found["image"]["mean"] == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(len(values))  # of the normal approximation
    assert found["image"]["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["image"]["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found["video"]["low"] == pytest.approx(1 - found["image"]["high"])


def test_few_videos_have_no_interval():
    found = summarize(weights_of([0.2, 0.4]))
    assert found["image"] == {"mean": pytest.approx(0.3), "low": None, "high": None}


def test_groups_of_a_folder_and_of_a_list_are_the_same(tmp_path):
    for name in ("motion/b.mp4", "motion/a.mp4", "motion/notes.txt", "static/c.png", "empty/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = tmp_path / "clips.jsonl"
    lines = [("motion", "a.mp4"), ("motion", "b.mp4"), ("static", "c.png")]
    listed.write_text(
        "\n\n".join(f'{{"video": "{group}/{name}", "group": "{group}"}}' for group, name in lines)
    )
    groups = read_groups(tmp_path)
    assert {name: [file.name for file in files] for name, files in groups.items()} == {
        "motion": ["a.mp4", "b.mp4"],
        "static": ["c.png"],
    }
    assert read_groups(listed) == groups


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"video": "a.mp4"}', "line 2: needs the texts video and group"),
        ('["a.mp4"]', "line 2: needs the texts"),
        ('{"video": "none.mp4", "group": "x"}', "none.mp4: no such file; paths are relative"),
        ("{", "line 2: is not JSON"),
    ],
)
def test_lists_are_not_trusted(tmp_path, line, message):
    (tmp_path / "a.mp4").touch()
    listed = tmp_path / "clips.jsonl"
    listed.write_text('{"video": "a.mp4", "group": "x"}\n' + line)
    with pytest.raises(DataError, match=message):
        read_groups(listed)


def test_a_folder_without_media_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no media; give a folder with a folder of videos"):
        read_groups(tmp_path)


def report():
    groups = {"motion": weights_of([0.1, 0.2, 0.15, 0.1, 0.2]), "text": weights_of([0.7])}
    rows = [
        {"group": name, "videos": len(of), "encoders": summarize(of)} for name, of in groups.items()
    ]
    everything = [each for of in groups.values() for each in of]
    return {"groups": rows, "all": {"videos": 6, "encoders": summarize(everything)}}


def test_the_table_compares_groups_with_all():
    lines = [line.split() for line in fusion.show(report()).splitlines()]
    assert ["motion", "5", "15.0", "[11.0,", "19.0]", "-9.2"] in [line[:6] for line in lines]
    assert ["text", "1", "70.0", "+45.8", "30.0", "-45.8"] in lines
    assert lines[-1][:2] == ["all", "6"]


def test_the_figure_is_drawn(tmp_path):
    file = tmp_path / "new" / "fusion.png"
    fusion.draw(report(), file)
    picture = np.asarray(Image.open(file).convert("RGB"))
    colors = {tuple(color) for color in picture.reshape(-1, 3)[::7]}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # a color of bars for each group
