"""Tests of training from a LLaVA file and videos in its folder, without building a data set."""

import json

import av
import numpy as np
import pytest

from elva_jax.config import schema
from elva_jax.config.serialize import config_from_dict, config_to_dict
from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.train import run


@pytest.fixture
def notes(tmp_path):
    """A JSON file with three conversations about two real clips, and one about a missing clip."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, level in (("dark", 40), ("bright", 210)):
        with av.open(videos / f"{name}.mp4", "w") as container:
            stream = container.add_stream("mpeg4", rate=6)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for _ in range(6):
                container.mux(
                    stream.encode(
                        av.VideoFrame.from_ndarray(
                            np.full((48, 64, 3), level, np.uint8), format="rgb24"
                        )
                    )
                )
            container.mux(stream.encode())
    records = [
        {
            "video": "dark.mp4",
            "conversations": [
                ("human", "<video>\nIs it dark?"),
                ("gpt", "Yes."),
                ("human", "Sure?"),
                ("gpt", "Yes."),
            ],
        },
        {
            "video": "bright.mp4",
            "conversations": [("human", "<image>\nIs it dark?"), ("gpt", "No.")],
        },
        {
            "video": ["dark.mp4", "bright.mp4"],
            "conversations": [("human", "<video><video>\nWhich is dark?"), ("gpt", "The first.")],
        },
        {
            "video": "gone.mp4",
            "conversations": [("human", "<video>\nIs it dark?"), ("gpt", "Who knows?")],
        },
    ]
    for record in records:
        record["conversations"] = [
            {"from": who, "value": text} for who, text in record["conversations"]
        ]
    path = tmp_path / "notes.json"
    path.write_text(json.dumps(records))
    return path


def test_two_steps_from_a_json_file_and_videos(tiny_run, data_dir, notes, tmp_path):
    config = tiny_run.get_config("video")
    config.tokenizer = str(data_dir / "tokenizer")
    stage = config.stages.video
    stage.steps = 2
    config.log.tensorboard = False
    stage.optimizer.name = "adamw"
    stage.loss.update(tube=0.0, contrastive=0.0)
    stage.data.mixture = {"mine": schema.source(str(notes), root=str(notes.parent / "videos"))}
    stage.data.max_bad_fraction = 0.5
    assert run(config, tmp_path / "run", ELVA) == 0
    lines = read_metrics(tmp_path / "run" / "video")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["generation"]) for line in lines)
    assert lines[-1]["dropped_records"] > 0


def test_sources_of_older_runs_have_no_root(tiny_run):
    config = tiny_run.get_config()
    old = config_to_dict(config)
    for stage in old["stages"].values():
        for source in stage["data"]["mixture"].values():
            del source["root"]
    assert config_to_dict(config_from_dict(old)) == config_to_dict(config)
