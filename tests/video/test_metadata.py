"""What files say about times, edits, crops, streams, fields and colors, by both readers.

The frames that a player shows are counted with PyAV: all decoded ones with their time stamps.
"""

import io
import json
import logging
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from elva_jax.cli import main
from elva_jax.data.example import Media
from elva_jax.hf.remote_code import decoding_elva
from elva_jax.tools.datasets.build.media import pack, probe
from elva_jax.video import notes
from elva_jax.video.read import read_frames

RATE = 10


def gray(k, height=32, width=48, corner=False):
    """A frame that tells its number, and which of its corners is the first."""
    pixels = np.full((height, width, 3), 20 * (k % 12) + 10, np.uint8)
    if corner:
        pixels[: height // 2, : width // 2] = (255, 0, 0)
    return pixels


def encode(
    times=range(8), size=(32, 48), form="mp4", aspect=None, rotation=0, corner=False, **options
):
    """The bytes of a video of frames at `times`, in tenths of seconds."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        options = {"qp": "4", "threads": "1", "bf": "0", **options}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(gray(k, *size, corner), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def box(data, *path, start=0, end=None):
    """The place of a box in an mp4 file."""
    end = len(data) if end is None else end
    while start < end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        if kind.decode("latin-1") == path[0]:
            inside = dict(start=start + 8, end=start + size)
            return start if len(path) == 1 else box(data, *path[1:], **inside)
        start += size
    raise AssertionError(path)


def shown(data):
    """(seconds from the first frame, pixels) of every frame that a player shows."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return [(time - frames[0][0], pixels) for time, pixels in frames]


def both(path, count):
    """Frames from both readers, which are equal; with their times and the duration."""
    ours = read_frames(path, num_frames=count)
    theirs = decoding_elva.read_video(path, count, None)
    assert len(ours.pixels) == len(theirs)
    for one, other in zip(ours.pixels, theirs, strict=True):
        np.testing.assert_array_equal(one, other.pixels())
    return ours


def assert_uniform_in_time(path, data, count):
    """Each of the frames is the last that a player shows by the middle of its share of time."""
    frames, read = shown(data), both(path, count)
    times = [read.duration * (2 * k + 1) / (2 * count) for k in range(count)]
    wanted = dict.fromkeys(sum(start <= time + 1e-9 for start, _ in frames) - 1 for time in times)
    assert len(read.pixels) == len(wanted)
    for pixels, time, k in zip(read.pixels, read.times, wanted, strict=True):
        np.testing.assert_array_equal(pixels, frames[k][1])
        assert time == pytest.approx(frames[k][0])


@settings(max_examples=12)
@given(
    gaps=st.lists(st.integers(1, 30), min_size=1, max_size=11),
    count=st.integers(1, 9),
    form=st.sampled_from(["mp4", "matroska"]),
    group=st.sampled_from(["1", "4", "99"]),
)
def test_variable_frame_rates(tmp_path_factory, gaps, count, form, group):
    data = encode(np.cumsum([0, *gaps]).tolist(), form=form, g=group, bf="2")
    path = tmp_path_factory.mktemp("vfr") / "clip.bin"
    path.write_bytes(data)
    assert_uniform_in_time(path, data, count)


@pytest.mark.parametrize("group", ["2", "99"])
@pytest.mark.parametrize(("first", "last"), [(0, 8), (3, 8), (3, 6), (0, 5), (7, 8)])
def test_edit_lists_are_followed(tmp_path, first, last, group):
    """Frames before and after the edit are neither shown nor counted."""
    data = bytearray(encode(g=group, bf="2"))
    place = box(data, "moov", "trak", "edts", "elst") + 16
    ticks = box(data, "moov", "trak", "mdia", "mdhd") + 20
    (ticks,) = struct.unpack(">I", data[ticks : ticks + 4])
    _, begin = struct.unpack(">Ii", data[place : place + 8])
    edit = (last - first) * 1000 // RATE, begin + first * ticks // RATE
    data[place : place + 8] = struct.pack(">Ii", *edit)
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    frames = both(path, 8)
    numbers = [round((pixels.mean() - 10) / 20) for pixels in frames.pixels]
    assert numbers == list(range(first, last))
    assert frames.duration == pytest.approx((last - first) / RATE)
    for count in (1, 3, 5):
        assert_uniform_in_time(path, bytes(data), count)
    size = probe(Media(bytes(data), "video"), "clip")
    assert (size.frames, size.seconds) == (last - first, pytest.approx((last - first) / RATE))
    packed, smaller = pack(Media(bytes(data), "video"), 24, "clip")
    assert (smaller.frames, smaller.seconds) == (size.frames, size.seconds)
    again = read_frames(packed, num_frames=8).pixels
    assert [round((pixels.mean() - 10) / 20) for pixels in again] == numbers


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts"])
def test_a_video_of_one_frame(tmp_path, form):
    (tmp_path / "clip.bin").write_bytes(encode([0], form=form))
    assert len(both(tmp_path / "clip.bin", 5).pixels) == 1


@pytest.mark.parametrize("boxes", ["headers", "samples too"])
def test_a_video_without_a_duration(tmp_path, boxes):
    data = bytearray(encode([0]))
    zero = {("moov", "mvhd"): 24, ("moov", "trak", "tkhd"): 28}
    zero[("moov", "trak", "mdia", "mdhd")] = 24
    if boxes == "samples too":
        zero[("moov", "trak", "mdia", "minf", "stbl", "stts")] = 20
    for names, offset in zero.items():
        place = box(data, *names) + offset
        data[place : place + 4] = bytes(4)
    (tmp_path / "clip.mp4").write_bytes(data)
    assert len(both(tmp_path / "clip.mp4", 5).pixels) == 1
    assert probe(Media(bytes(data), "video"), "clip").frames == 1


def test_the_crop_of_h264_is_followed(tmp_path):
    """Coded in blocks of 16 pixels, 38 x 50 are shown."""
    (tmp_path / "clip.mp4").write_bytes(encode(size=(38, 50)))
    assert both(tmp_path / "clip.mp4", 2).pixels[0].shape == (38, 50, 3)


@pytest.fixture
def said(caplog):
    """The notes about a file by both readers."""

    def read(path):
        caplog.clear()
        with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            both(path, 1)
        return caplog.messages, [str(warning.message) for warning in caught]

    return read


@pytest.mark.parametrize("flags", ["", "+ildct+ilme"])
def test_interlaced_video_is_noted(tmp_path, said, flags):
    (tmp_path / "clip.mp4").write_bytes(encode(**({"flags": flags} if flags else {})))
    for lines in said(tmp_path / "clip.mp4"):
        assert ["interlaced video is read without" in line for line in lines] == [True] * bool(
            flags
        )


@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize("default", [0, 1])
def test_of_several_streams_the_default_one_is_read(tmp_path, said, form, default):
    path = tmp_path / "clip.bin"
    with av.open(str(path), "w", format=form) as container:
        streams = []
        for number, size in enumerate([(32, 48), (64, 96)]):
            stream = container.add_stream("libx264", rate=RATE, options={"qp": "4"})
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            chosen = av.stream.Disposition(int(number == default))
            stream.disposition = chosen
            streams.append((stream, size))
        for number, (stream, size) in enumerate(streams):
            picture = av.VideoFrame.from_ndarray(gray(number, *size), format="rgb24")
            container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    assert both(path, 1).pixels[0].shape == [(32, 48, 3), (64, 96, 3)][default]
    for lines in said(path):
        assert len(lines) == 1
        assert "has 2 video streams" in lines[0]


def profile(primaries):
    """sRGB's profile with other primaries, XYZ relative to D50."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", data[128:132])
    for k in range(count):
        entry = data[132 + 12 * k : 144 + 12 * k]
        name, start = entry[:4].decode(), struct.unpack(">I", entry[4:8])[0]
        if name in primaries:
            values = [round(value * 65536) for value in primaries[name]]
            data[start + 8 : start + 20] = struct.pack(">3i", *values)
    return bytes(data)


ADOBE = {
    "rXYZ": (0.60974, 0.31111, 0.01947),
    "gXYZ": (0.20528, 0.62567, 0.06087),
    "bXYZ": (0.14919, 0.06322, 0.74457),
}


@pytest.mark.parametrize(("form", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
@pytest.mark.parametrize("kind", ["Adobe RGB", "sRGB", "damaged", "none"])
def test_color_profiles_are_not_applied_and_noted(tmp_path, said, monkeypatch, form, suffix, kind):
    """As by Pillow's convert("RGB") in other loaders."""
    monkeypatch.setattr(notes, "_said", set())
    found = {
        "Adobe RGB": profile(ADOBE),
        "sRGB": profile({}),
        "damaged": b"junk" * 40,
        "none": None,
    }
    path = tmp_path / f"a.{suffix}"
    image = Image.new("RGB", (40, 30), (90, 200, 60))
    image.save(path, form, icc_profile=found.get(kind))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(both(path, 1).pixels[0], np.asarray(opened.convert("RGB")))
    monkeypatch.setattr(notes, "_said", set())
    for lines in said(path):
        assert ["is not applied" in line for line in lines] == [True] * (kind == "Adobe RGB")
    assert said(path)[0] == []  # said once


def webp(path, *, flag, frames):
    """An animated WebP of lossless frames, with or without its flag of transparency."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=100, lossless=True)
    data = bytearray(path.read_bytes())
    assert data[12:16] == b"VP8X"
    data[20] = data[20] | 0x10 if flag else data[20] & ~0x10
    path.write_bytes(data)


@pytest.mark.parametrize("flag", [True, False])
def test_transparent_frames_of_a_webp_are_on_white(tmp_path, flag):
    frames = np.zeros((2, 16, 16, 4), np.uint8)
    frames[..., 0], frames[..., 3] = 200, 255
    frames[1, 4:12, 4:12] = 0
    webp(tmp_path / "a.webp", flag=flag, frames=frames)
    pixels = both(tmp_path / "a.webp", 2).pixels
    assert pixels[0][8, 8].tolist() == [200, 0, 0]
    assert pixels[1][8, 8].tolist() == [255, 255, 255]
    assert pixels[1][0, 0].tolist() == [200, 0, 0]
    from_bytes = read_frames((tmp_path / "a.webp").read_bytes(), num_frames=2).pixels
    np.testing.assert_array_equal(from_bytes, pixels)


def test_opaque_frames_of_a_webp_are_read_as_pillow_reads_them(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    webp(tmp_path / "a.webp", flag=False, frames=frames)
    np.testing.assert_array_equal(both(tmp_path / "a.webp", 3).pixels, frames)


@pytest.mark.parametrize(
    "shown_as",
    [{"aspect": Fraction(2)}, {"rotation": 90}, {"aspect": Fraction(1, 2), "rotation": 180}],
)
def test_display_metadata_are_applied_once_by_a_build(tmp_path, shown_as):
    """The smaller video shows the same pictures, within what its coding loses."""
    data = encode(size=(96, 128), corner=True, **shown_as)
    before = read_frames(data, num_frames=4)
    packed, size = pack(Media(data, "video"), 64, "clip")
    after = read_frames(packed, num_frames=4)
    assert after.pixels[0].shape == (size.height, size.width, 3)
    assert after.times.tolist() == before.times.tolist()
    with av.open(io.BytesIO(packed)) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio in (None, 1)
        assert next(container.decode(stream)).rotation == 0
    ratio = before.pixels[0].shape[1] / before.pixels[0].shape[0]
    assert size.width / size.height == pytest.approx(ratio, rel=0.05)
    for one, other in zip(before.pixels, after.pixels, strict=True):
        small = Image.fromarray(one).resize((size.width, size.height), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(small, int) - other).mean() < 5


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_orientation_is_applied_once_by_a_build(tmp_path, orientation, suffix):
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:30, :60] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    (before,) = read_frames(path, num_frames=1).pixels
    packed, size = pack(Media(str(path), "image"), 60, "a")
    (after,) = read_frames(packed, num_frames=1).pixels
    assert after.shape == (size.height, size.width, 3)
    small = Image.fromarray(before).resize((size.width, size.height), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small, int) - after).mean() < 3


def test_a_command_shows_the_notes_and_the_library_does_not(tmp_path, capfd):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(flags="+ildct+ilme"))
    read_frames(path, num_frames=1)
    assert capfd.readouterr().err == ""
    record = {"video": "clip.mp4", "conversations": []}
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}]
    (tmp_path / "a.json").write_text(json.dumps([record | {"conversations": turns}] * 2))
    assert main(["data", "inspect", str(tmp_path / "a.json")]) == 0
    assert capfd.readouterr().err.count("interlaced video is read without") == 2
    words = ["--name", "made", "--data-dir", str(tmp_path), "--workers", "2", "--shard-size", "1"]
    assert main(["data", "build", str(tmp_path / "a.json"), *words]) == 0
    assert "interlaced video is read without" in capfd.readouterr().err
    read_frames(path, num_frames=1)
    assert capfd.readouterr().err == ""
