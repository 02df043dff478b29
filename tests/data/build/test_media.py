"""Tests of stored media: the original bytes, or smaller frames at the same times."""

import io
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from elva_jax.data.example import Media
from elva_jax.errors import VideoError
from elva_jax.tools.datasets.build.media import Size, pack, probe
from elva_jax.video.read import read_frames

LEVELS = (16, 80, 150, 220)


def numbered(k: int, height: int, width: int) -> np.ndarray:
    """A frame that encodes its number in the gray levels of its three vertical parts."""
    digits = np.array([k // 16 % 4, k // 4 % 4, k % 4])
    columns = np.array(LEVELS, np.uint8)[digits[np.arange(width) * 3 // width]]
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()


def number(frame: np.ndarray) -> int:
    thirds = [frame[:, frame.shape[1] * (2 * k + 1) // 6].mean() for k in range(3)]
    return int(
        sum(
            np.abs(np.array(LEVELS) - level).argmin() * 4 ** (2 - k)
            for k, level in enumerate(thirds)
        )
    )


def encode(ticks, form="mp4", size=(120, 160), rotation=None, **options) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for k, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(numbered(k, *size), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


UNEVEN = [0, 1, 2, 5, 6, 7, 20, 21, 22, 23, 40, 41, 55]


@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize("ticks", [range(20), UNEVEN])
def test_resized_video_has_the_same_frames_at_the_same_times(form, ticks):
    data = encode(ticks, form, bf="2")
    packed, size = pack(Media(data, "video"), 64, "clip")
    assert (size.height, size.width) == (48, 64)
    assert size == probe(Media(packed, "video"), "clip")
    assert packed == pack(Media(data, "video"), 64, "clip")[0]
    for count in (1, 2, 3, 7, 13, 40):
        before, after = read_frames(data, num_frames=count), read_frames(packed, num_frames=count)
        assert [number(frame) for frame in after.pixels] == [
            number(frame) for frame in before.pixels
        ]
        assert after.times.tolist() == before.times.tolist()
        assert after.duration == before.duration


def test_resized_video_is_small_and_upright_with_the_same_colors():
    data = encode(range(5), rotation=90)
    packed, size = pack(Media(data, "video"), 64, "clip")
    assert (size.height, size.width) == (64, 48)
    wanted = read_frames(
        data,
        num_frames=5,
        transform=lambda picture: np.asarray(Image.fromarray(picture.pixels()).resize((48, 64))),
    ).pixels
    for frame, expected in zip(read_frames(packed, num_frames=5).pixels, wanted, strict=True):
        assert np.abs(frame.astype(int) - expected).mean() < 3
    with av.open(io.BytesIO(packed)) as file:
        assert [stream.codec_context.name for stream in file.streams] == ["h264"]
        assert file.format.name.startswith("mov,mp4")


@pytest.mark.parametrize("edge", [0, 160, 161])
def test_small_media_are_stored_unchanged(tmp_path, edge):
    data = encode(range(7))
    (tmp_path / "clip.mp4").write_bytes(data)
    for source in (data, str(tmp_path / "clip.mp4")):
        assert pack(Media(source, "video"), edge, "clip") == (
            data,
            Size(height=120, width=160, frames=7, seconds=0.7),
        )


@pytest.mark.parametrize(("form", "kept"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "PNG")])
def test_larger_images_are_resized(form, kept):
    out = io.BytesIO()
    Image.fromarray(np.linspace(0, 255, 90 * 300 * 3).astype(np.uint8).reshape(90, 300, 3)).save(
        out, form
    )
    packed, size = pack(Media(out.getvalue(), "image"), 100, "x")
    assert size == Size(height=30, width=100, frames=1, seconds=0.0)
    image = Image.open(io.BytesIO(packed))
    assert (image.format, image.size) == (kept, (100, 30))
    whole = np.asarray(
        Image.open(io.BytesIO(out.getvalue()))
        .convert("RGB")
        .resize((100, 30), Image.Resampling.BICUBIC),
        int,
    )
    assert np.abs(np.asarray(image, int) - whole).mean() < 2
    assert pack(Media(out.getvalue(), "image"), 300, "x")[0] == out.getvalue()


def test_a_folder_of_frames_becomes_a_video_of_one_frame_per_second(tmp_path):
    for k in range(5):
        Image.fromarray(numbered(k, 60, 91)).save(tmp_path / f"f{k}.png")
    for edge, width in ((0, 92), (46, 46)):
        packed, size = pack(Media(str(tmp_path), "video"), edge, "x")
        assert (size.width, size.frames, size.seconds) == (
            width - width % 2 if edge else 90,
            5,
            5.0,
        )
        before, after = read_frames(tmp_path, num_frames=5), read_frames(packed, num_frames=5)
        assert [number(frame) for frame in after.pixels] == [0, 1, 2, 3, 4]
        assert after.times.tolist() == before.times.tolist()


def test_an_animation_keeps_its_delays():
    out, frames = io.BytesIO(), [Image.fromarray(numbered(k, 60, 90)) for k in range(4)]
    frames[0].save(
        out, "GIF", save_all=True, append_images=frames[1:], duration=[100, 500, 200, 1000]
    )
    packed, size = pack(Media(out.getvalue(), "video"), 45, "x")
    assert size == Size(height=30, width=44, frames=4, seconds=1.8)
    before, after = read_frames(out.getvalue(), num_frames=9), read_frames(packed, num_frames=9)
    assert [number(frame) for frame in after.pixels] == [number(frame) for frame in before.pixels]
    assert after.times.tolist() == before.times.tolist()


@pytest.mark.parametrize("edge", [0, 64])
def test_truncated_videos_are_refused(tmp_path, edge):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", container_options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        for k in range(60):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(numbered(k, 120, 160), format="rgb24"))
            )
        container.mux(stream.encode(None))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(VideoError, match=r"clip\.mp4: truncated"):
        pack(Media(str(path), "video"), edge, "x")
    with pytest.raises(VideoError, match=r"clip\.mp4: truncated"):
        probe(Media(str(path), "video"), "x")


def test_media_beyond_the_limit_of_a_record_are_refused(tmp_path, monkeypatch):
    data = encode(range(7))
    monkeypatch.setattr("elva_jax.tools.datasets.build.media.LARGEST", len(data) - 1)
    with pytest.raises(
        VideoError,
        match=r"clip: has more than 0 MiB, the limit of a record; transcode it with a longest edge",
    ):
        pack(Media(data, "video"), 0, "clip")
    assert len(pack(Media(data, "video"), 32, "clip")[0]) < len(data)


def test_errors_can_be_pickled():
    with pytest.raises(VideoError) as caught:
        probe(Media(b"nothing", "video"), "clip7")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_packing_a_clip_again_gives_the_same_bytes():
    """x264's vector code, which a build does not use, gives about 1 of 15 such clips others."""
    source = Media(encode(range(20), "mp4", bf="2"), "video")
    assert len({pack(source, 64, "clip")[0] for _ in range(60)}) == 1
