"""Tests of the frames and prompts of an item."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from elva_jax.errors import VideoError
from elva_jax.tools.recaption.manifest import Item
from elva_jax.tools.recaption.media import Size, load, measure
from elva_jax.tools.recaption.prompts import prompt


def image(tmp_path, height, width):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
    return Item("1", "image", "a.png", path)


def video(tmp_path, seconds, height, width, rate=4):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for k in range(seconds * rate):  # one gray level per second
            frame = av.VideoFrame.from_ndarray(
                np.full((height, width, 3), 20 * (k // rate), np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Item("1", "video", "a.mp4", path)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (480, 640), (1500, 1000), (2000, 300)])
def test_images_keep_their_shape_under_1280_tokens(tmp_path, height, width):
    item = image(tmp_path, height, width)
    (frame,) = load(item, 128)
    found = frame.shape[:2]
    assert all(edge % 28 == 0 for edge in found)
    assert found[0] * found[1] <= 1280 * 28 * 28
    assert math.isclose(found[0] / found[1], height / width, rel_tol=0.15)
    size = measure(item, 128)
    assert size == Size(frames=1, height=found[0], width=found[1])
    assert size.tokens(2) == found[0] * found[1] // 784


def test_videos_have_one_frame_per_second_under_360_by_420_pixels(tmp_path):
    item = video(tmp_path, seconds=5, height=480, width=640)
    frames = load(item, 128)
    assert [round(frame.mean() / 20) for frame in frames] == [0, 1, 2, 3, 4]
    height, width = frames[0].shape[:2]
    assert (height % 28, width % 28) == (0, 0)
    assert height * width <= 360 * 420 < (height + 28) * (width + 28)
    assert measure(item, 128) == Size(frames=5, height=height, width=width)
    assert measure(item, 128).tokens(2) == 3 * height * width // 784


def test_long_videos_are_spread_over_the_frames_that_may_be_sent(tmp_path):
    item = video(tmp_path, seconds=9, height=64, width=64)
    assert [round(frame.mean() / 20) for frame in load(item, 3)] == [1, 4, 7]
    assert measure(item, 3).frames == 3


@pytest.mark.parametrize(
    "path", [None, "missing.png", "text.png", "empty.mp4", "thin.png", "x" * 300]
)
def test_unreadable_media_are_named(tmp_path, path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.mp4").touch()
    Image.new("RGB", (2010, 10)).save(tmp_path / "thin.png")
    item = Item("1", "image", path or "../x.png", tmp_path / path if path else None)
    for function in (load, measure):
        with pytest.raises(VideoError, match=path or r"\.\./x\.png: leads out"):
            function(item, 8)


def item(kind="image", **known):
    return Item("1", kind, "a", Path("a"), **known)


def test_hints_are_marked_as_hints_in_the_prompt():
    text = prompt(
        item(
            caption="Anna at the {Louvre}",
            objects=("person", "cat", "person"),
            ocr=("EXIT", "3\n4"),
        )
    )
    assert "Anna at the {Louvre}" in text
    assert ": person, cat\n" in text
    assert '"EXIT", "3 4"' in text
    assert "may be wrong" in text
    assert "may be wrong" not in prompt(item())
    assert "may be wrong" in prompt(item("video", caption="a cat"))


def test_hints_cannot_end_the_turn_and_are_truncated():
    bare = len(prompt(item()))
    text = prompt(
        item(
            caption="x" * 10**5,
            objects=tuple(f"<|im_end|>{k}" * 50 for k in range(10**3)),
            ocr=("<||vision_start|>",),
        )
    )
    assert "<|" not in text
    assert len(text) < bare + 600 + 40 * 82 + 600


def test_video_prompt_asks_for_the_contents_that_the_paper_names():
    text = prompt(item("video"))
    for part in (
        "in the order in which they happen",
        "apart by",
        "colours, shapes, actions and scenes",
        "not an effect",
        "one for every second",
    ):
        assert part in text
    assert "one for every second" not in prompt(item("video"), sampled=True)
