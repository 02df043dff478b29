"""Tests of read_frames on valid sources: sampled frames, orientation and colors."""

import io
import itertools
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from elva_jax.errors import ConfigError, VideoError
from elva_jax.video.read import read_frames, sample_times
from elva_jax.video.resize import resize_frame

CODECS = {
    "mp4": dict(container="mp4"),
    "mp4 hevc": dict(container="mp4", codec="libx265", options={"x265-params": "log-level=none"}),
    "mov": dict(container="mov"),
    "mkv": dict(container="matroska"),
    "webm": dict(
        container="webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}
    ),
    "webm vp8": dict(
        container="webm", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}
    ),
    "avi": dict(container="avi", codec="mpeg4"),
    "avi with B-frames": dict(container="avi", codec="libx264"),
    "fragmented mp4": dict(
        container="mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "live mkv": dict(container="matroska", container_options={"live": "1"}),
}


@pytest.mark.parametrize("kind", CODECS)
def test_uniform_sampling(clips, kind):
    data = clips.encode(range(30), **CODECS[kind])
    for num_frames in (1, 4, 7, 30):
        frames = read_frames(data, num_frames=num_frames)
        expected = clips.displayed_at(range(30), num_frames)
        assert [clips.number(frame) for frame in frames.pixels] == expected
        np.testing.assert_allclose(frames.times, np.array(expected) / 10, atol=1e-3)
        assert frames.duration == pytest.approx(3.0, abs=0.002)
        assert all(
            frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames.pixels
        )


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    gaps=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    offset=st.integers(0, 40),
    num_frames=st.integers(1, 30),
    container=st.sampled_from(["mp4", "matroska"]),
    b_frames=st.integers(0, 3),
)
def test_variable_rate_offset_and_b_frames(clips, gaps, offset, num_frames, container, b_frames):
    ticks = np.cumsum([offset, *gaps])
    data = clips.encode(
        ticks, container=container, options={"bf": str(b_frames), "preset": "ultrafast"}
    )
    # The muxer decides how long the last frame of a variable-rate file is displayed.
    with av.open(io.BytesIO(data)) as opened:
        video = opened.streams.video[0]
        if container == "mp4":
            end = video.start_time + video.duration
        else:
            pts, shown = max(
                (packet.pts, packet.duration or 0)
                for packet in opened.demux(video)
                if packet.pts is not None
            )
            end = pts + shown if shown else pts + gaps[-1] * Fraction(1, 10) / video.time_base
        last = round(end * video.time_base * 10) - int(ticks[-1])
    frames = read_frames(data, num_frames=num_frames)
    assert [clips.number(frame) for frame in frames.pixels] == clips.displayed_at(
        ticks, num_frames, last
    )


def test_a_frame_that_starts_exactly_at_a_sampled_time_is_the_one_shown(clips):
    # 10 frames per second, 5 samples: 0.1, 0.3, 0.5, 0.7 and 0.9 s are starts of frames, and float
    # rounding must not change that.
    frames = read_frames(clips.encode(range(10)), num_frames=5)
    assert [clips.number(frame) for frame in frames.pixels] == [1, 3, 5, 7, 9]


def test_variable_rate_in_avi(clips):
    ticks = [0, 1, 5, 6, 7, 15, 16]
    frames = read_frames(clips.encode(ticks, container="avi", codec="mpeg4"), num_frames=17)
    assert [clips.number(frame) for frame in frames.pixels] == list(range(7))
    np.testing.assert_allclose(frames.times, np.array(ticks) / 10)


@pytest.mark.parametrize(
    ("fps", "cap", "expected"),
    [(1, None, 4), (2.5, None, 10), (2.5, 6, 6), (0.01, None, 1), (100, None, 40)],
)
def test_sampling_at_a_frame_rate(clips, fps, cap, expected):
    frames = read_frames(clips.encode(range(40)), fps=fps, num_frames=cap)
    assert [clips.number(frame) for frame in frames.pixels] == clips.displayed_at(
        range(40), expected
    )


@settings(deadline=None)
@given(st.fractions(0, 100), st.integers(1, 50))
def test_sample_times_are_the_middles_of_equal_parts(duration, num_frames):
    edges = [duration * i / num_frames for i in range(num_frames + 1)]
    assert sample_times(duration, num_frames, None) == [
        (a + b) / 2 for a, b in itertools.pairwise(edges)
    ]


def test_sampling_must_be_specified():
    for wrong in ({}, {"num_frames": 0}, {"fps": 0.0}, {"num_frames": -1, "fps": 1}):
        with pytest.raises(ConfigError, match="num_frames"):
            read_frames(b"x", **wrong)


def test_frames_cut_by_an_edit_list_are_skipped(clips):
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    data = clips.encode(range(-15, 25), container_options=options)
    frames = read_frames(data, num_frames=5)
    assert frames.duration == 2.5
    assert [clips.number(frame) for frame in frames.pixels] == [17, 22, 27, 32, 37]


def test_recording_begins_at_its_first_key_frame(clips):
    data = clips.encode(range(100), container="mpegts", options={"g": "20", "sc_threshold": "0"})
    with av.open(io.BytesIO(data)) as container:
        third = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe][2]
    frames = read_frames(data[third + 188 :], num_frames=60)
    assert [clips.number(frame) for frame in frames.pixels] == list(range(60, 100))


def test_longer_audio_does_not_extend_the_video(clips):
    for container in ("mp4", "matroska"):
        data = clips.encode(range(20), container=container, audio_seconds=5)
        frames = read_frames(data, num_frames=4)
        assert frames.duration == pytest.approx(2.0, abs=0.01)
        assert [clips.number(frame) for frame in frames.pixels] == clips.displayed_at(range(20), 4)


def test_path_and_bytes_agree_and_transform_runs_on_each_frame(clips, tmp_path):
    path = tmp_path / "50%: odd, name.mp4"
    path.write_bytes(clips.encode(range(12)))
    seen = []

    def transform(picture):
        seen.append((picture.height, picture.width))
        return picture.pixels()[:2, :3]

    frames = read_frames(path, num_frames=3, transform=transform)
    assert seen == [(48, 64)] * 3
    assert [frame.shape for frame in frames.pixels] == [(2, 3, 3)] * 3
    for source in (str(path), path.read_bytes()):
        again = read_frames(source, num_frames=3)
        assert all(
            np.array_equal(a[:2, :3], b) for a, b in zip(again.pixels, frames.pixels, strict=True)
        )


def test_errors_of_the_transform_are_not_wrapped(clips):
    def transform(picture):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_frames(clips.encode(range(3)), num_frames=1, transform=transform)


@pytest.mark.parametrize("size", [(96, 128), (160, 96), (360, 512)])
@pytest.mark.parametrize(
    "options", [{}, {"rotation": (90, False)}, {"rotation": (180, True)}, {"alpha": True}]
)
def test_frame_decoded_at_a_size_equals_the_resized_frame(clips, options, size):
    """The decoder's scaler and Pillow's bicubic one agree on smooth images; edges would differ."""
    y, x = np.mgrid[:192, :256] / 256
    waves = [np.stack([y, x, 0.5 + 0.5 * np.sin(3 * x + y + t)], -1) for t in range(3)]
    frames = [(40 + 160 * wave).astype(np.uint8) for wave in waves]
    if options.pop("alpha", False):
        frames = [
            np.concatenate([frame, np.full((192, 256, 1), 128, np.uint8)], -1) for frame in frames
        ]
        options |= dict(container="mov", codec="png", pixel_format="rgba")
    data = clips.encode(range(3), frames=frames, size=(192, 256), **options)
    drawn = read_frames(data, num_frames=3, transform=lambda picture: picture.at(size)).pixels
    whole = read_frames(data, num_frames=3).pixels
    assert {frame.shape for frame in drawn} == {(*size, 3)}
    for got, frame in zip(drawn, whole, strict=True):
        difference = np.abs(got.astype(int) - resize_frame(frame, size))
        assert difference.mean() < 2
        # The maximum is where colors change, because videos have one color sample per four pixels.
        assert difference.max() <= 8


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix(clips, degrees, mirrored):
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a display matrix")
    stored = np.full((32, 64, 3), 40, np.uint8)
    stored[:16, :16] = 200  # a bright top left corner
    data = clips.encode(
        [0, 1], size=(32, 64), rotation=(degrees, mirrored), frames=[stored, stored]
    )
    shown = np.rot90(stored, degrees // 90)  # counter-clockwise, then mirrored
    if mirrored:
        shown = shown[:, ::-1]
    frame = read_frames(data, num_frames=1).pixels[0]
    assert frame.flags.c_contiguous
    np.testing.assert_allclose(frame, shown, atol=6)


def test_rotation_from_exif_inside_a_video(clips):
    upright = np.zeros((64, 48, 3), np.uint8)
    upright[:32, :24] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated left: must be rotated right
    picture, buffer = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.rot90(upright).copy()).save(picture, "jpeg", exif=exif)
    with av.open(buffer, "w", format="mov") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 10)
        output.mux(packet)
    with av.open(io.BytesIO(buffer.getvalue())) as opened:
        if next(opened.decode(video=0)).rotation == 0:
            pytest.skip("this FFmpeg does not read EXIF in a video's pictures")
    np.testing.assert_allclose(
        read_frames(buffer.getvalue(), num_frames=1).pixels[0], upright, atol=4
    )


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (33, 6), (240, 427)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv422p10le", "bgr0"])
def test_sizes_and_pixel_formats(clips, pixel_format, size):
    flat = [np.full((*size, 3), value, np.uint8) for value in ((60, 90, 120), (180, 20, 30))]
    data = clips.encode(
        [0, 1],
        container="matroska",
        codec="ffv1",
        size=size,
        pixel_format=pixel_format,
        frames=flat,
    )
    for frame, expected in zip(read_frames(data, num_frames=2).pixels, flat, strict=True):
        assert frame.shape == (*size, 3)
        np.testing.assert_allclose(frame, expected, atol=3)


def test_transparency_is_composited_on_white(clips, tmp_path):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 8:, 3] = 255
    rgba[:8, :8, 3] = 128
    expected = np.zeros((16, 16, 3), np.uint8)
    expected[:, 8:] = (200, 0, 0)
    expected[:8, :8] = (227, 127, 127)
    expected[8:, :8] = 255
    video = clips.encode(
        [0], container="mov", codec="png", pixel_format="rgba", size=(16, 16), frames=[rgba]
    )
    Image.fromarray(rgba).save(tmp_path / "still.png")
    for source in (video, tmp_path / "still.png"):
        np.testing.assert_allclose(read_frames(source, num_frames=1).pixels[0], expected, atol=1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
def test_still_image(clips, tmp_path, suffix):
    path = tmp_path / f"still.{suffix}"
    Image.fromarray(clips.numbered(77, 60, 90)).save(path)
    for source in (path, path.read_bytes()):
        frames = read_frames(source, num_frames=8, fps=2)
        assert [clips.number(frame) for frame in frames.pixels] == [77]
        assert frames.pixels[0].shape == (60, 90, 3)
        assert frames.times.tolist() == [0.0]
        assert frames.duration == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10, :15] = 255
    # The pixels that a camera stores, which the orientation rotates upright.
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    turned = upright.swapaxes(0, 1)
    stored |= {5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1]}
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(
        tmp_path / "photo.png", exif=exif
    )
    np.testing.assert_array_equal(
        read_frames(tmp_path / "photo.png", num_frames=1).pixels[0], upright
    )


def test_image_modes(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    Image.fromarray(ramp).save(tmp_path / "gray.png")
    palette = Image.fromarray(ramp).convert("P")
    palette.save(tmp_path / "palette.png")
    for name in ("gray16", "gray", "palette"):
        np.testing.assert_array_equal(
            read_frames(tmp_path / f"{name}.png", num_frames=1).pixels[0],
            np.repeat(ramp[..., None], 3, -1),
        )
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "print.jpg")
    assert read_frames(tmp_path / "print.jpg", num_frames=1).pixels[0].max() < 10


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animation_with_variable_delays(clips, kind):
    delays = [100, 300, 50, 700, 50]  # milliseconds
    images = [Image.fromarray(clips.numbered(index)) for index in range(5)]
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    images[0].save(
        buffer, kind, save_all=True, append_images=images[1:], duration=delays, loop=0, **options
    )
    starts = np.cumsum([0, *delays[:-1]])
    for num_frames in (1, 3, 12):
        frames = read_frames(buffer.getvalue(), num_frames=num_frames)
        middles = [(i + Fraction(1, 2)) * 1200 / num_frames for i in range(num_frames)]
        expected = sorted({int(np.flatnonzero(starts <= middle)[-1]) for middle in middles})
        assert [clips.number(frame) for frame in frames.pixels] == expected
        np.testing.assert_allclose(frames.times, starts[expected] / 1000)
        assert frames.duration == pytest.approx(1.2)


def test_gif_without_delays_is_timed_like_in_a_browser(clips):
    images = [Image.fromarray(clips.numbered(index)) for index in range(5)]
    buffer = io.BytesIO()
    images[0].save(buffer, "gif", save_all=True, append_images=images[1:], duration=0)
    assert read_frames(buffer.getvalue(), num_frames=5).duration == pytest.approx(0.5)


def test_animation_of_too_many_pixels_is_refused_before_it_is_drawn():
    """All of its frames but the first are one block, again and again: 6 billion pixels."""
    buffer = io.BytesIO()
    one, two = Image.new("P", (2000, 2000), 0), Image.new("P", (2000, 2000), 1)
    one.save(buffer, "gif", save_all=True, append_images=[two], duration=20)
    gif = buffer.getvalue()
    second = gif.rindex(b"\x21\xf9\x04")  # its graphic control extension
    bomb = gif[:second] + gif[second:-1] * 1499 + gif[-1:]
    with pytest.raises(VideoError, match=r"has 1500 frames of 2000x2000 pixels.* 4\.3 billion"):
        read_frames(bomb, num_frames=4)
    assert len(read_frames(gif, num_frames=4).pixels) == 2


def test_folder_in_natural_order(clips, tmp_path):
    for index in range(12):
        Image.fromarray(clips.numbered(index, 40 + index, 60)).save(
            tmp_path / f"frame{index}.{'png' if index % 2 else 'JPG'}"
        )
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(b"not a picture either")
    frames = read_frames(tmp_path, num_frames=12)
    assert [clips.number(frame) for frame in frames.pixels] == list(range(12))
    assert [frame.shape[0] for frame in frames.pixels] == list(range(40, 52))
    assert frames.duration == 12
    assert [clips.number(frame) for frame in read_frames(str(tmp_path), num_frames=4).pixels] == [
        1,
        4,
        7,
        10,
    ]
    frames = read_frames(tmp_path, fps=1, folder_fps=3)
    assert frames.duration == 4
    assert [clips.number(frame) for frame in frames.pixels] == [1, 4, 7, 10]
    np.testing.assert_allclose(frames.times, np.array([1, 4, 7, 10]) / 3)


def test_real_clips_equal_full_decoding(real_clips):
    for path in real_clips:
        frames = read_frames(
            path, num_frames=6, transform=lambda picture: picture.pixels()[::8, ::8]
        )
        assert len(frames.pixels) == 6
        if path.stat().st_size > 300_000:
            continue  # decoding these in full takes seconds
        middles = [Fraction(frames.duration) * (2 * i + 1) / 12 for i in range(6)]
        expected = []
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            start = shown = None
            for frame in container.decode(video=0):
                start = frame.time if start is None else start
                while len(expected) < 6 and frame.time - start > middles[len(expected)]:
                    expected.append(shown)
                shown = frame
            assert 0 < frames.duration - (shown.time - start) < 0.2, path
        assert frames.times.tolist() == pytest.approx([frame.time - start for frame in expected]), (
            path
        )
        for frame, pixels in zip(expected, frames.pixels, strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24")[::8, ::8], pixels)


def test_small_clips_are_read_quickly(clips):
    data = clips.encode(range(24), size=(64, 64))
    read_frames(data, num_frames=12)
    best = min(_seconds(lambda: read_frames(data, num_frames=12)) for _ in range(10))
    assert best < 0.02  # about 1 ms on an idle core


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_names_with_digits_that_are_no_numbers_are_sorted(tmp_path):
    """`²` is a digit to Python, and no number; `٣` is 3."""
    for k, name in enumerate(("a²", "a1", "a٣", "a10")):
        Image.fromarray(np.full((8, 8, 3), 50 * k, np.uint8)).save(tmp_path / f"{name}.png")
    found = read_frames(tmp_path, num_frames=9)
    assert sorted(int(pixels[0, 0, 0]) for pixels in found.pixels) == [0, 50, 100, 150]
