"""Tests that a medium is read as it is displayed, by the package and the exported processor."""

import logging
import os
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from elva_jax.errors import VideoError
from elva_jax.hf.remote_code import decoding_elva
from elva_jax.tools.datasets.build.media import Media, probe
from elva_jax.video import reader
from elva_jax.video.probe import MOST_PIXELS
from elva_jax.video.read import read_frames
from elva_jax.video.reader import displayed_size

BT709, BT601, BT2020 = 1, 6, 9  # colour matrices of ITU-T H.273


def write(path, *, aspect=None, space=None, full=False, transfer=None, ycc=(110, 100, 170)):
    """Two frames of one color; `aspect` is the width of a pixel by its height."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if space:
            stream.codec_context.colorspace = space
            stream.codec_context.color_range = 2 if full else 1
        if transfer:
            stream.codec_context.color_trc = transfer
        for k in range(2):
            frame = av.VideoFrame(48, 32, "yuv420p")
            for value, plane in zip(ycc, frame.planes, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts = k
            if space:
                frame.colorspace, frame.color_range = space, 2 if full else 1
            if transfer:
                frame.color_trc = transfer
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def both(path):
    """The first frame, the same from both readers in two sizes."""
    ours = read_frames(path, num_frames=1, transform=lambda f: (f.pixels(), f.at((28, 42))))
    theirs = decoding_elva.read_video(path, 1, None)
    assert len(ours.pixels) == len(theirs) == 1
    np.testing.assert_array_equal(ours.pixels[0][0], theirs[0].pixels())
    np.testing.assert_array_equal(ours.pixels[0][1], theirs[0].at((28, 42)))
    return ours.pixels[0][0]


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [(None, (32, 48)), ("2/1", (32, 96)), ("1/2", (64, 48)), ("4/3", (32, 64)), ("99/1", (32, 48))],
)
def test_pixels_that_are_not_square(tmp_path, aspect, shape):
    path = write(tmp_path / "clip.mp4", aspect=aspect and Fraction(aspect))
    assert both(path).shape[:2] == shape
    size = probe(Media(kind="video", source=str(path)), "clip")  # of `elva data build`
    assert (size.height, size.width) == shape


@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.fractions(Fraction(1, 16), 16, max_denominator=100),
)
def test_pixels_are_stretched_never_dropped(height, width, aspect):
    high, wide = displayed_size(height, width, aspect)
    assert high >= height
    assert wide >= width
    assert abs(Fraction(wide, high) - width * aspect / height) <= Fraction(max(wide, high), high**2)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("space", "kr", "kb"),
    [(BT709, 0.2126, 0.0722), (BT601, 0.299, 0.114), (BT2020, 0.2627, 0.0593)],
)
def test_colors_by_matrix_and_range(tmp_path, space, kr, kb, full):
    """Against the formulas of ITU-T H.273."""
    y, u, v = 110, 100, 170
    y, u, v = (
        (y / 255, (u - 128) / 255, (v - 128) / 255)
        if full
        else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    )
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    pixels = both(write(tmp_path / "clip.mp4", space=space, full=full))
    np.testing.assert_allclose(pixels[16, 24], 255 * np.array([red, green, blue]), atol=3)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG"), (1, None)])
def test_high_dynamic_range_is_noted_once(tmp_path, caplog, transfer, name):
    path = write(tmp_path / "clip.mp4", transfer=transfer, space=BT2020)
    with caplog.at_level(logging.WARNING):
        read_frames(path, num_frames=2)
    assert [f"{path}: {name} video" in line for line in caplog.messages] == [True] * bool(name)


def test_first_picture_of_a_phone_jpeg(tmp_path):
    path = tmp_path / "phone.jpg"
    first, second = (Image.new("RGB", (40, 30), color) for color in ("red", "blue"))
    first.save(path, "MPO", save_all=True, append_images=[second])
    assert both(path)[15, 20].tolist() == [254, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Where the stored top left corner appears, by the table of the EXIF standard."""
    shown = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)]
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    read = both(tmp_path / "a.png")
    assert read.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))
    assert read[shown[orientation - 1]].tolist() == [255] * 3
    assert read.mean() < 40


def claims(width, height):
    """A PNG whose header claims a size."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@pytest.mark.parametrize("size", [(10**5, 10**5), (2**14, 2**14), (2**31 - 1, 1)])
def test_claimed_sizes_are_bounded(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(claims(*size))
    assert size[0] * size[1] > MOST_PIXELS
    for read in (
        lambda: read_frames(path, num_frames=1),
        lambda: decoding_elva.read_video(path, 1, None),
        lambda: decoding_elva.read_image(path),
    ):
        with pytest.raises((VideoError, ValueError), match="bomb"):
            read()


@pytest.mark.parametrize(("most", "readable"), [(2 * 48 * 32, True), (2 * 48 * 32 - 1, False)])
def test_decoded_pixels_of_a_video_are_bounded(tmp_path, monkeypatch, most, readable):
    """The second of two frames takes both."""
    assert decoding_elva.MOST_DECODED == reader.MOST_DECODED
    path = write(tmp_path / "clip.mp4")
    for module in (reader, decoding_elva):
        monkeypatch.setattr(module, "MOST_DECODED", most)
    for read in (read_frames, decoding_elva.read_video):
        if readable:
            read(path, num_frames=2, fps=None)
            continue
        with pytest.raises((VideoError, ValueError), match=r"clip.* decoded pixels .* of 48x32"):
            read(path, num_frames=2, fps=None)


@pytest.mark.parametrize("kind", ["ffconcat", "m3u8", "sdp"])
def test_playlists_open_no_other_file(tmp_path, kind):
    """Only the formats of media are opened, so that no file names another."""
    clip = write(tmp_path / "clip.mp4")
    text = {
        "ffconcat": f"ffconcat version 1.0\nfile '{clip.name}'\n",
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 9 RTP/AVP 96\n",
    }[kind]
    path = tmp_path / f"list.{kind}"
    path.write_text(text)
    for read in (read_frames, decoding_elva.read_video):
        with pytest.raises((VideoError, ValueError), match=f"list.{kind}"):
            read(path, num_frames=1, fps=None)


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "pipe:0", "http://127.0.0.1:9/a.mp4"])
def test_names_that_are_no_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for read in (read_frames, decoding_elva.read_video):
        with pytest.raises((VideoError, ValueError, FileNotFoundError), match=name.split("/")[-1]):
            read(name, num_frames=1, fps=None)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(tmp_path, kind):
    """Pillow would clip them: most such pictures would be black or white."""
    path = tmp_path / "x.tiff"
    Image.fromarray(np.full((30, 40), 0.5 if kind is np.float32 else 70_000, kind)).save(path)
    with pytest.raises(VideoError, match=r"x\.tiff: has 32 bits per pixel"):
        read_frames(path, num_frames=1)
    with pytest.raises(ValueError, match="32 bits per pixel"):
        decoding_elva.read_video(path, 1, None)[0].pixels()
