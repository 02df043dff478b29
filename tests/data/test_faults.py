"""Tests of bad files among good ones: training skips them and reports their number and reasons."""

import json
import multiprocessing
import os
import time
from collections import Counter
from itertools import islice

import av
import numpy as np
import pytest
from PIL import Image

from elva_jax.config import schema
from elva_jax.data import mixture
from elva_jax.data.batches import conversation_batches
from elva_jax.errors import DataError, VideoError
from elva_jax.testing import endless_animation
from elva_jax.video.layout import Kind
from elva_jax.video.read import read_frames

GOOD = 190
ANSWER = "a red circle"


def conversation(medium, answer=ANSWER, question="What is it?"):
    kind = "image" if medium.endswith((".png", ".jpg")) else "video"
    return {
        kind: medium,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }


def encode(path, pts=range(6), size=(32, 48), rate=6):
    """Writes a real mp4 with frames at the given ticks."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for tick in pts:
            frame = av.VideoFrame.from_ndarray(
                np.full((*size, 3), tick % 200, np.uint8), format="rgb24"
            )
            frame.pts = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def rotten(tmp_path):
    """A JSONL file of 200 records, 5 % of them bad, and {line of a bad record: its reason}."""
    encode(tmp_path / "good.mp4")
    good = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    # A container whose video stream has no frames.
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        container.add_stream("mpeg4", rate=6)
        container.start_encoding()
    (tmp_path / "noise.jpg").write_bytes(
        np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    )
    os.mkfifo(tmp_path / "pipe.mp4")
    nobody_answers = conversation("good.mp4", answer=" ")
    bad = [
        (
            json.dumps(conversation("cut.mp4")).encode(),
            "not a video or image that can be read, or broken (Invalid argument)",
        ),
        (json.dumps(conversation("empty.mp4")).encode(), "is empty (0 bytes)"),
        (json.dumps(conversation("silent.mp4")).encode(), "has no video stream"),
        (json.dumps(conversation("noise.jpg")).encode(), "has no video stream"),
        (json.dumps(conversation("pipe.mp4")).encode(), "is neither a file nor a folder"),
        (json.dumps(conversation("missing.mp4")).encode(), "no such file or folder"),
        (
            json.dumps(conversation("../outside.mp4")).encode(),
            "a media path leaves the root folder",
        ),
        (
            b'{"video": "good.mp4", "conversations": [{"from": "human", "value": "caf\xe9"}]}',
            "is not UTF-8 text",
        ),
        (
            json.dumps({"video": "good.mp4", "conversations": []}).encode(),
            "the conversation is empty",
        ),
        (json.dumps(nobody_answers).encode(), "a question has no answer"),
    ]
    lines = [json.dumps(conversation("good.mp4")).encode()] * (GOOD + len(bad))
    places = np.random.default_rng(1).choice(len(lines), len(bad), replace=False)
    for place, (line, _) in zip(places, bad, strict=True):
        lines[place] = line
    (tmp_path / "notes.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return tmp_path / "notes.jsonl", {
        int(place): reason for place, (_, reason) in zip(places, bad, strict=True)
    }


@pytest.fixture
def run(config, tokenizer):
    """`run(file, **data_keys)` returns the iterator of a stage that reads only this file."""

    def start(path, root="", **data):
        stage = config.stages.video
        stage.data.mixture = schema.ConfigDict({"notes": schema.source(str(path), root=root)})
        stage.data.update(pack=False, longest_edge=48, **data)
        return conversation_batches(config, "video", tokenizer)

    return start


@pytest.mark.parametrize("workers", [0, 1])
def test_five_percent_bad_records_are_skipped_and_counted_exactly(run, rotten, config, workers):
    path, bad = rotten
    batches = run(path, max_bad_fraction=0.2, workers=workers)
    order = mixture.stream([GOOD + len(bad)], [1.0], mixture.stage_seed(config.seed, "video"))
    for _ in range(GOOD // 4):
        assert next(batches)["layout"].kind.shape[0] == 4
    hit = [order[position][1] for position in range(batches.seen)]
    expected = [bad[line] for line in hit if line in bad]
    assert batches.dropped == len(expected) >= 8
    assert batches.reasons == Counter(expected)
    state = batches.get_state()
    assert {f"notes.jsonl:{line + 1}" for line in hit if line in bad} >= set(
        state["first"].values()
    )
    batches.close()


def test_run_stops_above_the_limit_and_lists_the_reasons(run, rotten):
    path, _ = rotten
    batches = run(path, max_bad_fraction=0.01)
    with pytest.raises(
        DataError,
        match=r"^2 of \d+ records are bad, over the limit data\.max_bad_fraction = 0\.01: "
        r".*notes\.jsonl:\d+",
    ):
        list(islice(batches, GOOD // 4))


def test_file_that_takes_too_long_is_skipped(run, tmp_path):
    encode(tmp_path / "good.mp4")
    (tmp_path / "endless.gif").write_bytes(endless_animation())
    lines = [conversation("good.mp4")] * 3 + [conversation("endless.gif")]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batches = run(tmp_path / "notes.jsonl", time_limit=3.0, max_bad_fraction=1.0)
    next(batches)
    assert batches.reasons == {"takes longer than 3 s to read (data.time_limit)": batches.dropped}
    assert set(batches.get_state()["first"].values()) == {"notes.jsonl:4"}


def test_unusual_but_valid_media_are_used(run, tmp_path):
    """An image of one pixel, an 8K image, and a video of three hours."""
    Image.new("RGB", (1, 1), (200, 0, 0)).save(tmp_path / "dot.png")
    Image.new("RGB", (7680, 4320), (0, 200, 0)).save(tmp_path / "8k.jpg")
    encode(tmp_path / "long.mp4", pts=[0, 5000, 8000, 10799], rate=1)
    names = ("dot.png", "8k.jpg", "long.mp4")
    (tmp_path / "notes.jsonl").write_text(
        "".join(json.dumps(conversation(name, answer=name)) + "\n" for name in names)
    )
    assert read_frames(tmp_path / "long.mp4", num_frames=8).duration > 3 * 3600 - 60
    batches = run(tmp_path / "notes.jsonl")
    layout = next(batches)["layout"]
    patches = layout.kind == Kind.PATCH
    seen = {
        (int(row.sum()), len(np.unique(frame[row])))
        for row, frame in zip(patches, layout.frame, strict=True)
    }
    # Numbers of 16-pixel patches and of frames, for edges of at most 48 pixels.
    assert seen == {(1, 1), (3 * 2, 1), (3 * 2 * 3, 3)}
    assert batches.dropped == 0


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoError, match="is neither a file nor a folder"):
        read_frames(tmp_path / "pipe", num_frames=1)


@pytest.mark.parametrize("count", [1, 3, 4, 40])
def test_a_wrong_folder_of_media_is_told_before_the_first_record(run, tmp_path, count):
    """Below four media, one missing file may be a fault of its own, which is counted."""
    for folder in ("right", "wrong"):
        (tmp_path / folder).mkdir()
    encode(tmp_path / "right" / "good.mp4")
    lines = [conversation("good.mp4")] * count
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(tmp_path / "notes.jsonl", root=str(tmp_path / "right")).close()
    if count < 4:
        run(tmp_path / "notes.jsonl", root=str(tmp_path / "wrong")).close()
        return
    message = (
        r"mixture\.\S+: none of \d+ media of .*notes\.jsonl exists, such as .*wrong/good\.mp4;"
    )
    with pytest.raises(DataError, match=message):
        run(tmp_path / "notes.jsonl", root=str(tmp_path / "wrong"))


def test_a_killed_decoding_process_ends_the_run_with_one_error(run, tmp_path):
    """It is killed while it waits to write, so that half a message is left."""
    encode(tmp_path / "good.mp4")
    lines = [conversation("good.mp4")] * 40
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batches = run(tmp_path / "notes.jsonl", workers=2)
    next(batches)
    workers = [child for child in multiprocessing.active_children() if "grain" in child.name]
    assert len(workers) == 2
    time.sleep(2)  # until the pipes are full
    workers[1].kill()
    with pytest.raises(DataError, match=r"a process that decodes data has ended \(-9"):
        list(islice(batches, 100))
    batches.close()
    assert not any(worker.is_alive() for worker in workers)
