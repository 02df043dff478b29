"""Tests of read_frames on bad sources: a VideoError with source and reason, nothing on stderr."""

import contextlib
import io
import os
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from elva_jax.errors import ElvaError, VideoError
from elva_jax.video.read import read_frames


def refused(source, reason, num_frames=4, **options) -> VideoError:
    with pytest.raises(VideoError, match=reason) as caught:
        read_frames(source, num_frames=num_frames, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_missing_file(tmp_path):
    error = refused(tmp_path / "gone.mp4", "no such file")
    assert error.name == str(tmp_path / "gone.mp4")
    assert error.name in str(error)


@pytest.mark.parametrize("name", ["empty.mp4", "empty.png", "empty"])
def test_zero_bytes(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path / name, "is empty")
    refused(b"", "is empty")


def test_folders(tmp_path):
    refused(tmp_path, "folder without images")
    (tmp_path / "readme.txt").write_text("nothing to see")
    refused(tmp_path, "folder without images")
    (tmp_path / "a.png").write_bytes(b"not a picture")
    assert refused(tmp_path, "cannot be read").name == str(tmp_path / "a.png")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="needs a user whom file permissions bind"
)
def test_file_without_read_permission(tmp_path):
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"x")
    path.chmod(0)
    refused(path, "Permission denied")


NOT_VIDEOS = {
    "one byte": b"x",
    "text": b"hello world\n" * 500,
    "zeros": bytes(5000),
    "play list": b"#EXTM3U\n#EXTINF:1\nother.ts\n",
    "list of files": b"ffconcat version 1.0\nfile other.mp4\n",
}


@pytest.mark.parametrize("content", NOT_VIDEOS.values(), ids=NOT_VIDEOS)
def test_other_files(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    refused(tmp_path / "clip.mp4", "not a video or image")
    refused(content, "not a video or image", name="record 7")


def test_heif_is_named_as_unsupported():
    refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100, "HEIF")


def test_audio_only(clips):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        clips.mux_silence(output, output.add_stream("aac", rate=16000), 1)
    refused(buffer.getvalue(), "no video stream")


def test_audio_with_a_cover(clips):
    buffer, cover = io.BytesIO(), io.BytesIO()
    Image.fromarray(clips.numbered(1)).save(cover, "jpeg")
    with av.open(buffer, "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=16000)
        picture = output.add_stream("mjpeg", rate=1)
        picture.height, picture.width, picture.pix_fmt = 48, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        clips.mux_silence(output, sound, 1)
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1, 1)
        output.mux(packet)
    refused(buffer.getvalue(), "no video stream")


KINDS = {
    "mp4 with its index first": dict(container="mp4", container_options={"moov_size": "20000"}),
    "mp4 with its index last": dict(container="mp4"),
    "fragmented mp4": dict(
        container="mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mkv": dict(container="matroska"),
    "webm": dict(
        container="webm", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}
    ),
    "avi": dict(container="avi", codec="mpeg4"),
}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"fragmented mp4"}))
def test_truncated(clips, tmp_path, kind):
    data = clips.encode(range(60), **KINDS[kind], size=(96, 96))
    for share in (0.05, 0.3, 0.6, 0.8):
        path = tmp_path / f"cut{share}.bin"
        path.write_bytes(data[: int(share * len(data))])
        error = refused(path, "truncated|broken|no frame|cannot be read", num_frames=8)
        assert error.name == str(path)


@pytest.fixture(scope="module")
def whole(clips):
    """The bytes of a file of each kind, and some of its frames."""
    made = {
        kind: clips.encode(range(40), **options, size=(96, 96)) for kind, options in KINDS.items()
    }
    return {kind: (data, read_frames(data, num_frames=5)) for kind, data in made.items()}


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(set(KINDS) - {"fragmented mp4"})), share=st.floats(0, 1))
def test_truncated_file_gives_correct_frames_or_an_error(whole, kind, share):
    data, frames = whole[kind]
    try:
        cut = read_frames(data[: int(share * len(data))], num_frames=5)
    except VideoError:
        return
    assert cut.times.tolist() == frames.times.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(cut.pixels, frames.pixels, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    hits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=30),
)
def test_damaged_videos_raise_only_video_errors(whole, kind, hits):
    content = bytearray(whole[kind][0])
    for place, value in hits:
        content[int(place * len(content))] = value
    with contextlib.suppress(VideoError):
        assert 1 <= len(read_frames(bytes(content), num_frames=5).pixels) <= 5


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about the damage
@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["png", "jpeg", "gif", "webp", "tiff", "bmp"]),
    share=st.floats(0, 0.95),
    flip=st.integers(0, 10**6),
)
def test_damaged_images_raise_only_video_errors(kind, share, flip):
    buffer = io.BytesIO()
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), np.uint8))
        for seed in range(3)
    ]
    pictures[0].save(
        buffer,
        kind,
        **({"save_all": True, "append_images": pictures[1:]} if kind in ("gif", "webp") else {}),
    )
    content = bytearray(buffer.getvalue())
    content[flip % len(content)] ^= 0x55
    for damaged in (bytes(content), buffer.getvalue()[: int(share * len(content))]):
        with contextlib.suppress(VideoError):
            assert len(read_frames(damaged, num_frames=2).pixels) in (1, 2)


def test_nothing_on_stderr(clips, capfd):
    for options in KINDS.values():
        data = clips.encode(range(20), **options)
        capfd.readouterr()  # ignore messages of the encoder
        middle = len(data) // 2
        for damaged in (
            data[:middle],
            data[:middle] + bytes(200) + data[middle + 200 :],
            b"x" * 300,
        ):
            with contextlib.suppress(VideoError):
                read_frames(damaged, num_frames=4)
        captured = capfd.readouterr()
        assert captured.err == ""
        assert captured.out == ""


def test_errors_can_be_sent_between_processes(tmp_path):
    error = refused(tmp_path / "gone.mp4", "no such file", name="clip 3")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ElvaError)
    assert (again.name, again.reason, str(again)) == ("clip 3", error.reason, str(error))
