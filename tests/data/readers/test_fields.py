"""Tests of the fields that say which part of a video a record means."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from elva_jax import testing
from elva_jax.cli import main
from elva_jax.config import mixtures, schema
from elva_jax.data.decode_example import CaptionDecoder, ConversationDecoder
from elva_jax.data.example import Media
from elva_jax.data.mixture import Mixture
from elva_jax.data.readers import fields
from elva_jax.data.sources import open_examples
from elva_jax.errors import ConfigError, DataError, RecordError, VideoError
from elva_jax.video.read import read_frames

TALK = {"conversations": [{"from": "human", "value": "<video>\nWhich color?"}]}
TALK["conversations"].append({"from": "gpt", "value": "Blue."})


def parts(kind="video", name="clip.mp4", **more):
    """A record whose medium is a part of a message."""
    content = [{"type": kind, kind: name, **more}, {"type": "text", "text": "Which color?"}]
    answer = {"role": "assistant", "content": "Blue."}
    return {"messages": [{"role": "user", "content": content}, answer]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight frames, a second each: as files, and as a video whose first half is red, then blue."""
    folder = tmp_path_factory.mktemp("media")
    for k in range(8):
        pixels = np.full((32, 48, 3), 30 * k, np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    colors = [np.full((32, 48, 3), color, np.uint8) for color in ((250, 0, 0), (0, 0, 250))]
    testing.write_video(folder / "clip.mp4", [colors[0]] * 8 + [colors[1]] * 8, fps=4)
    return folder


def files(folder, first=0, last=8):
    return tuple(str(folder / f"{k}.png") for k in range(first, last))


@given(
    bounds=st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda b: b[0] < b[1]),
    count=st.integers(1, 9),
    fps=st.sampled_from([None, 0.5, 1.0, 3.0]),
)
def test_an_excerpt_is_sampled_as_if_the_rest_were_cut_off(folder, bounds, count, fps):
    start, end = bounds
    found = read_frames(files(folder), num_frames=count, fps=fps, span=bounds)
    cut = read_frames(files(folder, start, end), num_frames=count, fps=fps)
    assert np.array_equal(found.pixels, cut.pixels)
    assert (found.times - start).tolist() == cut.times.tolist()
    assert found.duration == cut.duration == end - start


def test_spans_end_with_the_video_and_must_begin_in_it(folder):
    assert len(read_frames(files(folder), num_frames=99, span=(6.0, 100.0)).pixels) == 2
    with pytest.raises(VideoError, match=r"lasts 8 s; the excerpt begins at 8 s"):
        read_frames(files(folder), num_frames=1, span=(8.0, None))
    with pytest.raises(VideoError, match="without images"):
        read_frames((), num_frames=1)


BOUNDED = [
    {"video": "clip.mp4", "start": 2, "end": 4.0, **TALK},
    {"video": "clip.mp4", "video_start": "2.0", "end": "00:00:04", **TALK},
    {"video": "clip.mp4", "start_time": "0:02.000", **TALK},
    parts(video_start=2.0, video_end=4.0),
    parts("video_url", {"url": "clip.mp4"}, start=2),
]


@pytest.mark.parametrize(
    ("record", "form"),
    [
        (record, form)
        for record in BOUNDED
        for form in ("json", "jsonl", "parquet")
        if form != "parquet" or "messages" not in record  # a column has one type
    ],
)
def test_bounds_are_followed(folder, record, form, tmp_path):
    path = tmp_path / f"notes.{form}"
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist([record]), path)
        source, root = f"hf:{tmp_path}", str(folder)
    else:
        path.write_text(json.dumps([record] if form == "json" else record) + "\n")
        source, root = str(path), str(folder)
    example = open_examples(schema.source(source, "", root=root), "")[0]
    (medium,) = example.media
    assert (medium.start, medium.end) in ((2.0, 4.0), (2.0, None))
    for pixels in read_frames(medium.source, num_frames=4, span=medium.span).pixels:
        assert pixels[..., 2].mean() > 200 > 50 > pixels[..., 0].mean()  # blue, not red


def test_bounds_of_webdataset_and_webvid(folder, tmp_path):
    shard = tmp_path / "a.tar"
    clip = (folder / "clip.mp4").read_bytes()
    with tarfile.open(shard, "w") as tar:
        for name, data in (("x.mp4", clip), ("x.json", json.dumps({**TALK, "start": 2}).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = tmp_path / "a.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["videoid", "name", "start", "end"], ["clip", "Blue", "2", ""]])
    for source in (shard, table):
        example = open_examples(schema.source(str(source), "", root=str(folder)), "")[0]
        assert (example.media[0].start, example.media[0].end) == (2.0, None)


FAULTY = {
    "not a number of seconds": {"start": "soon"},
    "is not within a video": {"end": float("nan")},
    "more than 4300 digits s is not within": {"end": 10**5000},
    "inf s is not within": {"start": "inf"},
    "1e\\+300 s is not within": {"end": 1e300},
    "-1 s is not within": {"start": -1},
    "ends at 1 s, before it begins at 1 s": {"start": 1, "end": 1},
    "two values for one thing: start 1 and video_start 2": {"start": 1, "video_start": 2},
    "True is not a number of seconds": {"start": True},
}


@pytest.mark.parametrize("problem", FAULTY)
def test_bounds_that_cannot_be_are_refused(problem):
    with pytest.raises(RecordError, match=problem):
        fields.excerpts(FAULTY[problem], [Media("x", "video")], "r")
    with pytest.raises(RecordError, match=problem):
        fields.of_part(Media("x", "video"), FAULTY[problem], "r")


@pytest.mark.parametrize("name", fields.REFUSED)
def test_fields_that_no_stage_follows_are_refused(name):
    with pytest.raises(RecordError, match=f"asks for {name} = 4, which no stage follows"):
        fields.of_part(Media("x", "video"), {name: 4}, "r")


def test_numbers_of_frames_and_media_that_have_none():
    video, image = Media("x", "video"), Media("y", "image")
    assert fields.of_part(video, {"nframes": 3}, "r").frames == 3
    for count in (0, -1, True, 2.5, "8", 10**9):
        with pytest.raises(RecordError, match=r"number of frames|more than"):
            fields.of_part(video, {"nframes": count}, "r")
    for part in ({"nframes": 3}, {"start": 1}):
        with pytest.raises(RecordError, match="for an image"):
            fields.of_part(image, part, "r")
    with pytest.raises(RecordError, match="bounds in seconds and 2 videos"):
        fields.excerpts({"start": 1}, [video, video], "r")
    assert fields.excerpts({"start": 1}, [], "r") == ()
    assert fields.excerpts({"id": 7, "source": "x"}, [video, image], "r") == (video, image)


@pytest.mark.parametrize("names", [["0.png", "1.png"], ["0.png", "../x.png"]])
def test_a_list_of_frames_is_a_video(folder, names, tmp_path):
    path = tmp_path / "notes.json"
    listed = {"videos": [names], **TALK}
    path.write_text(json.dumps([listed, parts(name=names)]))
    examples = open_examples(schema.source(str(path), "", root=str(folder)), "")
    for k in range(2):
        if "../x.png" in names:
            with pytest.raises(RecordError, match="leaves the root"):
                examples[k]
            continue
        (medium,) = examples[k].media
        assert medium.source == files(folder, 0, 2)
        assert len(read_frames(medium.source, num_frames=9).pixels) == 2


def test_training_reads_the_excerpt_and_its_number_of_frames(folder, config, tokenizer, tmp_path):
    path = tmp_path / "notes.json"
    path.write_text(json.dumps([parts(start=2.0, nframes=3), {**TALK, "video": "clip.mp4"}]))
    example, whole = open_examples(schema.source(str(path), "", root=str(folder)), "")
    stage = config.stages.video
    stage.data.num_frames = 2
    mixture = Mixture(config, "video")
    decoder = ConversationDecoder(mixture, config, stage, tokenizer)
    rng = np.random.default_rng(0)
    found, other = decoder.prepare(example, rng), decoder.prepare(whole, rng)
    assert (found.counts.frames, other.counts.frames) == (3, 2)
    colors = found.patches.reshape(len(found.patches), -1, 3).mean(axis=1)
    assert (colors[:, 2] > 200).all()
    assert (colors[:, 0] < 50).all()
    clip = CaptionDecoder(mixture, config, stage, tokenizer).prepare(example, rng)
    assert len(clip.pixels) == 3
    assert clip.pixels[..., 2].mean() > 200


@pytest.mark.parametrize("longest_edge", ["0", "32"])
def test_build_keeps_what_is_meant(folder, tmp_path, longest_edge):
    notes = tmp_path / "notes.json"
    records = [parts(start=2.0, nframes=3), {"videos": [["0.png", "5.png"]], **TALK}]
    notes.write_text(json.dumps([*records, {"video": "clip.mp4", **TALK}]))
    command = ["data", "build", str(notes), "--root", str(folder), "--name", "built"]
    command += ["--data-dir", str(tmp_path), "--longest-edge", longest_edge, "--workers", "1"]
    assert main(command) == 0
    built = open_examples(schema.source("built", "train"), str(tmp_path))
    examples = {example.key: example for example in built}
    cut, listed, whole = (examples[f"notes.json[{k}]"].media[0] for k in range(3))
    assert (cut.start, cut.end, cut.frames) == (2.0, None, 3)
    blue = read_frames(cut.source, num_frames=3, span=cut.span).pixels
    assert all(pixels[..., 2].mean() > 200 > 50 > pixels[..., 0].mean() for pixels in blue)
    assert whole.span == listed.span == (0.0, None)
    levels = [pixels.mean() for pixels in read_frames(listed.source, num_frames=9).pixels]
    np.testing.assert_allclose(levels, [0, 150], atol=6)  # H.264 is lossy


@given(st.lists(st.sampled_from(["videoid", "name", "page_dir", "more"]), min_size=2, max_size=6))
def test_two_columns_of_one_name_are_refused(tmp_path_factory, columns):
    """The last one would be taken."""
    columns = ["videoid", "name", *columns]
    folder = tmp_path_factory.mktemp("columns")
    (folder / "a.csv").write_text(",".join(columns) + "\n" + ",".join("x" * len(columns)) + "\n")
    arrays = [pa.array(["x"])] * len(columns)
    parquet.write_table(pa.Table.from_arrays(arrays, columns), folder / "a.parquet")
    for source in (str(folder / "a.csv"), f"hf:{folder}"):
        if len(set(columns)) < len(columns):
            with pytest.raises(DataError, match="two columns"):
                open_examples(schema.source(source, ""), "")
        else:
            open_examples(schema.source(source, ""), "")


def test_a_damaged_row_is_a_bad_record(tmp_path):
    (tmp_path / "a.csv").write_text('videoid,name\n1,"a" b\n2,ok\n')
    with pytest.raises((DataError, RecordError), match=r"a\.csv"):
        open_examples(schema.source(str(tmp_path / "a.csv"), ""), "")[0]


def test_a_key_twice_in_a_mixture_is_refused(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("datasets:\n  - {json_path: a.json, weight: 1.0, weight: 2.0}\n")
    with pytest.raises(ConfigError, match="the key 'weight' occurs twice in line 2"):
        mixtures.from_yaml(path)
