"""Draws scenes as RGB frames, and encodes them as image and video files."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator

import av
import numpy as np
from PIL import Image

from elva_jax.tools.datasets.moving_shapes.scene import Scene, center
from elva_jax.tools.datasets.moving_shapes.style import COLOURS

_GLYPHS = (  # rows of a 3 x 5 bitmap, one bit per pixel from the left
    (7, 5, 5, 5, 7),
    (2, 6, 2, 2, 7),
    (7, 1, 7, 4, 7),
    (7, 1, 3, 1, 7),
    (5, 5, 7, 1, 1),
    (7, 4, 7, 1, 7),
    (7, 4, 7, 5, 7),
    (7, 1, 2, 2, 2),
    (7, 5, 7, 5, 7),
    (7, 5, 7, 1, 7),
)
_DIGIT_PIXEL = (3, 4)  # rows and columns of canvas pixels per glyph pixel, at scale 1


def frames(scene: Scene) -> Iterator[np.ndarray]:
    """Yields every frame of a scene, uint8[height, width, 3]."""
    base = background(scene)
    for index in range(scene.frames):
        yield draw(scene, index, base)


def background(scene: Scene) -> np.ndarray:
    """The empty canvas, uint8[height, width, 3]: one gray level, with constant noise if any."""
    canvas = np.full((scene.height, scene.width, 3), scene.grey, np.uint8)
    if scene.noise:
        noise = np.random.default_rng(scene.noise_seed).normal(
            0, scene.noise, (scene.height, scene.width, 1)
        )
        canvas = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    return canvas


def draw(scene: Scene, index: int, base: np.ndarray | None = None) -> np.ndarray:
    """One frame, uint8[height, width, 3]; `base` is `background(scene)` if the caller has it."""
    canvas = (background(scene) if base is None else base).copy()
    ink = (255, 255, 255) if scene.grey < 128 else (0, 0, 0)
    for thing in scene.things:
        if thing.flash[0] <= index < thing.flash[1]:
            square = _square(round(thing.radius + 3 * scene.scale))
            _paste(canvas, square, *center(thing, scene, index), ink)
    for thing in sorted(scene.things, key=lambda t: t.motion != ""):  # moving things in front
        if thing.enters <= index < thing.leaves:
            turned = thing.turns_to and index >= thing.turns_at
            colour = COLOURS[thing.turns_to if turned else thing.look.colour]
            mask = _mask(thing.look.shape, thing.radius)
            _paste(canvas, mask, *center(thing, scene, index), colour)
    if scene.digit and scene.digit.enters <= index < scene.digit.leaves:
        _paste(canvas, _glyph(scene.digit.value, scene.scale), scene.digit.x, scene.digit.y, ink)
    return canvas


def encode_video(pictures: Iterable[np.ndarray], width: int, height: int, fps: int) -> bytes:
    """Encodes uint8[height, width, 3] frames as an MPEG-4 file.

    Every build of FFmpeg has its mpeg4 encoder. At the best quantizer it encodes a small clip in a
    millisecond, decodes twice as fast as H.264, and on one thread its bytes depend on the frames
    alone.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "mpeg4", rate=fps, options={"qmin": "2", "qmax": "2", "flags": "+bitexact"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_image(picture: np.ndarray) -> bytes:
    """Encodes a uint8[height, width, 3] picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def encode(scene: Scene) -> bytes:
    """The file of a scene: PNG for a still, MP4 for a video."""
    if scene.frames == 1:
        return encode_image(draw(scene, 0))
    return encode_video(frames(scene), scene.width, scene.height, scene.fps)


def _paste(
    canvas: np.ndarray, mask: np.ndarray, x: float, y: float, colour: tuple[int, int, int]
) -> None:
    """Colors the pixels of a mask centered at (x, y) in place, cut to the canvas."""
    height, width = canvas.shape[:2]
    top, left = round(y - mask.shape[0] / 2), round(x - mask.shape[1] / 2)
    rows = slice(max(top, 0), min(top + mask.shape[0], height))
    columns = slice(max(left, 0), min(left + mask.shape[1], width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    part = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[rows, columns][part] = colour


def _square(half: int) -> np.ndarray:
    return np.ones((2 * half, 2 * half), bool)


@functools.lru_cache(maxsize=256)
def _mask(shape: str, radius: float) -> np.ndarray:
    """The pixels of a shape, bool[2n, 2n]; x and y count radii from the middle."""
    n = int(np.ceil(radius))
    axis = (np.arange(2 * n) + 0.5 - n) / radius
    x, y = np.meshgrid(axis, axis)
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.88
    if shape == "triangle":
        return (abs(x) <= (y + 1) / 2) & (abs(y) <= 1)
    if shape == "cross":
        return np.minimum(abs(x), abs(y)) <= 0.32
    if shape == "diamond":
        return abs(x) * 1.3 + abs(y) <= 1
    if shape == "star":
        angle = (np.arctan2(x, -y) % (2 * np.pi / 5)) - np.pi / 5
        return np.hypot(x, y) * (0.45 + 0.55 * (1 - abs(angle) / (np.pi / 5))) <= 0.45
    raise ValueError(shape)


@functools.lru_cache(maxsize=64)
def _glyph(value: int, scale: float) -> np.ndarray:
    """The pixels of a digit, bool[rows, columns]."""
    bits = np.array([[row >> shift & 1 for shift in (2, 1, 0)] for row in _GLYPHS[value]], bool)
    return np.kron(bits, np.ones([round(side * scale) for side in _DIGIT_PIXEL], bool))
