"""Tests of sampling strategies, LLaVA's YAML format, and the paper's data by name."""

import re
from pathlib import Path

import pytest
import yaml

from elva_jax.config import mixtures, schema
from elva_jax.config.load import load, resolve
from elva_jax.data import mixture
from elva_jax.errors import ConfigError, DataError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("text", "total", "count"),
    [
        ("all", 7, 7),
        ("first:3", 7, 3),
        ("end:100", 7, 100),
        ("random:10%", 30, 3),
        ("random:10%", 31, 4),
        ("first:0.1%", 3000, 3),
    ],
)
def test_strategies_select_the_right_number_of_records(text, total, count):
    assert mixtures.parse_sampling(text).count(total) == count


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("firs:100", "first:100"),
        ("last:5%", "first:5%"),
        ("ends:5%", "end:5%"),
        ("Random:20", "random:20"),
        ("random:20 %", "random:20%"),
        ("random 20", "random:20"),
        ("random:150%", "all"),
        ("random", "random:1000"),
        ("random:%", "random:10%"),
        ("first:0", "first:1000"),
        ("first:-3", "first:3"),
        ("end:0%", "end:10%"),
        ("first:1.5", "first:1"),
        ("al", "all"),
        ("", "all"),
        ("all:5", "all"),
    ],
)
def test_invalid_strategies_are_refused_with_a_suggestion(wrong, meant):
    with pytest.raises(ValueError, match=rf"did you mean {re.escape(meant)}\?$"):
        mixtures.parse_sampling(wrong)
    mixtures.parse_sampling(meant)
    with pytest.raises(
        ConfigError,
        match=rf"stages\.video\.data\.mixture\.images\.sampling: .*{re.escape(meant)}\?$",
    ):
        load(f"{CONFIGS}/tiny.py", [f"--config.stages.video.data.mixture.images.sampling={wrong}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "mixture.images.epochs=2.0",
            r"mixture\.images\.epochs: 2\.0 changes nothing .* set data\.temperature = 1\.0",
        ),
        ("mixture.images.epochs=0.0", r"mixture\.images\.epochs: must be positive, got 0\.0"),
        ("temperature=-1.0", r"temperature: cannot be negative, got -1\.0"),
    ],
)
def test_invalid_shares_are_refused(override, message):
    with pytest.raises(ConfigError, match=rf"^stages\.video\.data\.{message}"):
        load(f"{CONFIGS}/tiny.py", [f"--config.stages.video.data.{override}"])
    load(
        f"{CONFIGS}/tiny.py",
        [
            "--config.stages.video.data.temperature=1.0",
            "--config.stages.video.data.mixture.images.epochs=2.0",
        ],
    )


YAML = """
datasets:
  - json_path: /data/llava_665k.json
    sampling_strategy: first:10%
  - json_path: video/next-qa.json
    sampling_strategy: "random:2000"
    root: video/clips
    weight: 2
  - json_path: other/next-qa.json
  - json_path: moving_shapes/easy
    split: train
    tasks: [caption]
    label: shapes
"""


def test_llava_yaml_is_a_mixture(tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text(YAML)
    got = mixtures.from_yaml(path, root="media")
    assert list(got) == ["llava_665k", "next_qa", "next_qa_3", "shapes"]
    assert got.llava_665k == schema.source(
        "/data/llava_665k.json", sampling="first:10%", root="media"
    )
    assert got.next_qa == schema.source(
        "video/next-qa.json", sampling="random:2000", root="video/clips", weight=2.0
    )
    assert got.next_qa_3 == schema.source("other/next-qa.json", root="media")
    assert (got.shapes.name, got.shapes.split, got.shapes.tasks) == (
        "moving_shapes/easy",
        "train",
        ("caption",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot be opened \(No such file or directory\)"),
        ("datasets: [", "is not YAML"),
        ("- json_path: a.json", "has no list 'datasets'"),
        ("datasets: []", "has no list 'datasets'"),
        ("datasets: [a.json]", r"datasets\[1\]: has no json_path"),
        ("datasets: [{json_path: a.json}, {json_pat: b.json}]", r"datasets\[2\]: has no json_path"),
        (
            "datasets: [{json_path: a.json, sampling: all}]",
            r"datasets\[1\]: no such key 'sampling'; did you mean sampling_strategy\?",
        ),
        ("datasets: [{json_path: a.json, weight: much}]", r"datasets\[1\]: weight: "),
    ],
)
def test_invalid_yaml_is_refused_with_its_entry(tmp_path, text, message):
    path = tmp_path / "mix.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: {message}") as error:
        mixtures.from_yaml(path)
    assert "\n" not in str(error.value)


# Table 7 and its text: millions of images and videos in stages 1 and 2, thousands of
# conversations in stage 3.
PAPER = {
    "stage1": {"densefusion": 1.0, "recaptioned_images": 3.0},
    "stage2": {"densefusion": 1.0, "recaptioned_images": 3.0, "webvid": 2.0, "valor": 1.0},
    "stage3": {"llava_images": 665.0, "llava_video": 178.0},
    "stage3_hd": {"llava_images": 665.0, "llava_video": 178.0, "hd": 3000.0},
}
# Thousands of records of MERV's two stages (arXiv 2501.01426).
MERV = {
    "merv_align": {"valley": 702.0, "llava_pretraining": 558.0},
    "merv_finetune": {"llava_images": 665.0, "video_chatgpt": 100.0},
}


def test_data_of_the_paper_have_its_sizes():
    others = {*MERV, "video_teacher"}
    assert {path.stem for path in (CONFIGS / "data").iterdir()} == {*PAPER, *others}
    for size in ("1_5b", "7b", "7b_hd"):
        c = load(f"{CONFIGS}/elva.py:size={size}", ["--config.data_root=/data/elva"])
        for stage in c.curriculum:
            name = "stage3_hd" if (size, stage) == ("7b_hd", "stage3") else stage
            assert {
                label: source.weight for label, source in c.stages[stage].data.mixture.items()
            } == PAPER[name]
            assert (
                c.stages[stage].data.mixture.to_dict()
                == mixtures.from_yaml(CONFIGS / "data" / f"{name}.yaml").to_dict()
            )
    assert sum(PAPER["stage1"].values()) == 4
    assert sum(PAPER["stage2"].values()) - sum(PAPER["stage1"].values()) == 3
    for path in (CONFIGS / "data").iterdir():
        for entry in yaml.safe_load(path.read_text())["datasets"]:
            assert not Path(entry["json_path"]).is_absolute()


def test_missing_files_are_listed_with_their_root(tmp_path, monkeypatch):
    c = load(f"{CONFIGS}/elva.py:size=7b,stage=3", [f"--config.data_root={tmp_path}"])
    (tmp_path / "llava_665k").mkdir()
    (tmp_path / "llava_665k" / "llava_v1_5_mix665k.json").write_text('[{"conversations": []}]')
    with pytest.raises(DataError) as error:
        mixture.Mixture(c, "stage3")
    assert str(error.value) == (
        "stages.stage3.data.mixture: no such file: llava_video:"
        f" {tmp_path}/llava_video_178k/llava_video_178k.jsonl;"
        f" names are relative to data_root = {tmp_path}: set --config.data_root=FOLDER"
    )
    c.data_root = ""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError,
        match=rf"relative to the working directory {re.escape(str(tmp_path))},"
        " because data_root is empty",
    ):
        mixture.Mixture(c, "stage3")


def test_files_and_media_are_found_below_the_root(tmp_path):
    c = load(f"{CONFIGS}/elva.py:size=7b,stage=3", [f"--config.data_root={tmp_path}"])
    for source in c.stages.stage3.data.mixture.values():
        file = tmp_path / source.name
        file.parent.mkdir(parents=True)
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": file.stem}]
        text = f'{{"image": "coco/1.jpg", "conversations": {turns}}}'.replace("'", '"')
        file.write_text(f"[{text}]" if file.suffix == ".json" else text)
    loaded = mixture.Mixture(c, "stage3")
    assert loaded.shares == [373, 100]  # 665 to 178
    for number, folder in enumerate(("llava_665k", "llava_video_178k")):
        (medium,) = loaded.example(number, 0).media
        assert medium.source == str(tmp_path.resolve() / folder / "coco" / "1.jpg")
    resolve(c)


def test_data_of_merv_have_its_sizes():
    c = load(f"{CONFIGS}/merv.py:recipe=full", ["--config.data_root=/data/merv"])
    for stage in c.curriculum:
        sources = c.stages[stage].data.mixture.items()
        assert {label: source.weight for label, source in sources} == MERV[f"merv_{stage}"]
