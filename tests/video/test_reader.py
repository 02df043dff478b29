"""Tests of seeking in long files: same frames as without seeking, with much less decoding."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from elva_jax.errors import VideoError
from elva_jax.video import reader
from elva_jax.video.read import sample_times
from elva_jax.video.reader import VideoFile

X265 = "keyint=20:min-keyint=20:bframes=4:log-level=none"
KINDS = {
    "mp4": dict(container="mp4", options={"g": "20", "sc_threshold": "0"}),
    "mp4, open groups": dict(
        container="mp4", options={"x264-params": "keyint=20:open-gop=1:bframes=3:scenecut=0"}
    ),
    "mp4, rolling refresh": dict(
        container="mp4", options={"x264-params": "keyint=20:intra-refresh=1"}
    ),
    "mp4, one group": dict(container="mp4", options={"g": "9999"}),
    "mp4 hevc, open groups": dict(
        container="mp4", codec="libx265", options={"x265-params": X265 + ":open-gop=1"}
    ),
    "mp4 mpeg4, open groups": dict(container="mp4", codec="mpeg4", options={"g": "20", "bf": "2"}),
    "mkv": dict(container="matroska", options={"g": "20"}),
    "mkv, open groups": dict(
        container="matroska", options={"x264-params": "keyint=20:open-gop=1:bframes=3:scenecut=0"}
    ),
    "mkv without an index": dict(
        container="matroska", options={"g": "20"}, container_options={"live": "1"}
    ),
    "webm": dict(
        container="webm",
        codec="libvpx-vp9",
        options={"g": "20", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "8"},
    ),
    "avi": dict(container="avi", codec="mpeg4", options={"g": "20", "bf": "2"}),
    "ts": dict(container="mpegts", options={"g": "20"}),
}
TICKS = {
    "steady": list(range(250)),
    "variable": np.cumsum(np.random.default_rng(0).integers(1, 6, 250)).tolist(),
}


@pytest.fixture
def decoded_frames(monkeypatch):
    """Counts the frames that the decoder outputs."""
    counter = [0]
    decode = VideoFile._decode

    def counted(self, *args, **kwargs):
        for shown in decode(self, *args, **kwargs):
            counter[0] += 1
            yield shown

    monkeypatch.setattr(VideoFile, "_decode", counted)
    return counter


def everything(data: bytes) -> tuple[list[Fraction], list[np.ndarray]]:
    """All frames and their times, decoded in order; in AVI the times are those of the packets."""
    times, frames = [], []
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(video=0):
            if container.format.name == "avi" and packet.size:
                times.append(packet.dts * packet.time_base)
            frames += packet.decode()
        times = times or [frame.pts * frame.time_base for frame in frames]
    return [time - times[0] for time in times], frames


@pytest.mark.parametrize("ticks", TICKS.values(), ids=TICKS)
@pytest.mark.parametrize("kind", KINDS)
def test_seeking_does_not_change_frames(clips, decoded_frames, kind, ticks):
    data = clips.encode(ticks, **KINDS[kind])
    times, frames = everything(data)
    for num_frames in (3, 9, 40):
        decoded_frames[0] = 0
        video = VideoFile(data, kind)
        wanted = sample_times(video.duration, num_frames, None)
        got = [(time, picture.pixels()) for time, picture in video.frames_at(wanted)]
        video.close()
        chosen = sorted({max(k for k, time in enumerate(times) if time <= t) for t in wanted})
        assert [time for time, _ in got] == [times[k] for k in chosen]
        for k, (_, pixels) in zip(chosen, got, strict=True):
            np.testing.assert_array_equal(pixels, frames[k].to_ndarray(format="rgb24"))
        if num_frames == 3 and kind in ("mp4", "mkv", "webm", "mp4 hevc, open groups"):
            assert decoded_frames[0] < 150  # of 250
        assert decoded_frames[0] < 3 * 250


def test_distant_frame_decodes_only_one_group(clips, decoded_frames):
    data = clips.encode(range(1000), options={"g": "10", "preset": "ultrafast"}, size=(16, 16))
    video = VideoFile(data, "long")
    (_, picture), *more = video.frames_at([Fraction(905, 10)])
    assert not more
    assert decoded_frames[0] < 40
    assert (picture.height, picture.width) == (16, 16)
    video.close()


def test_pixels_that_are_decoded_are_bounded(clips, monkeypatch):
    """Only those up to the sampled frames count, from the key frame before each of them."""
    times = [Fraction(k, 10) for k in (125, 195)]
    monkeypatch.setattr(reader, "MOST_DECODED", 100 * 16 * 16)
    for group, enough in (("10", True), ("1000", False)):
        options = {"g": group, "preset": "ultrafast", "sc_threshold": "0"}
        video = VideoFile(clips.encode(range(200), options=options, size=(16, 16)), "clip")
        if enough:
            assert len(list(video.frames_at(times))) == 2
        else:
            with pytest.raises(VideoError, match=r"^clip: .* of 16x16, key frames 12.5 s "):
                list(video.frames_at(times))
            video.close()
            video = VideoFile(clips.encode(range(200), options=options, size=(16, 16)), "clip")
            assert len(list(video.all_frames())) == 200
        video.close()
