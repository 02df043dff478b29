"""Fuzzes media headers: mp4, webm, png, jpeg, gif and webp, through both readers.

`python tests/fuzz/media.py --findings DIR`. An input is the content of a file, which the package
and the exported processor read.
"""

from __future__ import annotations

import io
import random
import tempfile
import warnings
from pathlib import Path

import av
import common
import numpy as np
from PIL import Image

from elva_jax.errors import VideoError
from elva_jax.hf.remote_code import decoding_elva
from elva_jax.testing.data import write_video
from elva_jax.testing.media import tiny_video
from elva_jax.video.read import read_frames

EXTREMES = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 10**5, 2**31 - 1, 2**31, 2**32 - 1)
HEADER = 256  # bytes at the start that most mutations hit


def make_seeds() -> list[bytes]:
    """One small file of each format."""
    frames = tiny_video(4)
    pictures = [Image.fromarray(frame) for frame in frames]
    out = []
    for name, several in (
        *(("PNG", False), ("PNG", True), ("JPEG", False), ("GIF", True), ("WEBP", False)),
        *(("WEBP", True), ("MPO", True), ("TIFF", False), ("BMP", False), ("PPM", False)),
    ):
        file = io.BytesIO()
        more = {"save_all": True, "append_images": pictures[1:]} if several else {}
        pictures[0].save(file, name, **more)
        out.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        out += [
            write_video(Path(folder) / f"clip.{kind}", frames).read_bytes()
            for kind in ("mp4", "mkv", "avi")
        ]
        out.append(_webm(Path(folder) / "clip.webm", frames))
    return out


def _webm(path: Path, frames: list[np.ndarray]) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=4)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path.read_bytes()


SEEDS = make_seeds()


def target(data: bytes, folder: Path) -> None:
    """Reads a file by its path and as bytes, and with the exported processor."""
    path = folder / "medium"
    path.write_bytes(data)
    problem = None
    for source in (path, data):
        try:
            read_frames(source, num_frames=4, transform=lambda frame: frame.at((28, 28)))
        except VideoError as error:
            problem = error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for picture in decoding_elva.read_video(path, 4, None):
                picture.at((28, 28))
        except ValueError:
            pass  # the error type of the exported processor
    if problem is not None:
        raise problem


def grow(rng: random.Random) -> bytes:
    """A seed with changed numbers, bits, pieces or length, most of them in its header."""
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        reach = len(data) if rng.random() < 0.4 else min(HEADER, len(data))
        if not reach:
            break
        at, kind = rng.randrange(reach), rng.randrange(6)
        if kind < 3:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(EXTREMES) % 256**size
            data[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        elif kind == 3:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice((4, 32, 256))] * rng.choice((1, 2, 100))
        elif rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            del data[at : at + rng.choice((1, 4, 32))]
    return bytes(data[: 2**20])


if __name__ == "__main__":
    common.main(target, grow, SEEDS)
