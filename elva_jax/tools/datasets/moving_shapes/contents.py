"""Clips grouped by what one has to see in them: motion, text or a static picture.

    motion   shapes that cross the canvas
    text     a word on an empty canvas, in every frame
    static   shapes that stay where they are

`elva bench fusion` compares how much MERV's encoders take part in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from elva_jax.tools.datasets.moving_shapes import render
from elva_jax.tools.datasets.moving_shapes.records import scene_of
from elva_jax.tools.datasets.moving_shapes.scene import Scene
from elva_jax.tools.datasets.moving_shapes.style import COLOURS, SHAPES
from elva_jax.utils.files import write_atomic

SPLIT = "test"  # whose scenes are drawn
SCENES = 1 << 20  # more than are looked at
WORDS = (*COLOURS, *SHAPES)


def write(folder: Path, count: int, *, style: str = "easy", seed: int = 0) -> dict[str, list[Path]]:
    """Writes `count` clips of each group as <folder>/<group>/<number>.mp4.

    Args:
      folder: made where it is missing.
      count: of clips in each group.
      style: of the builder config.
      seed: the files are a function of the style, the seed and their number.

    Returns:
      The files by group.
    """
    moving = _scenes(style, seed, motion=True)
    still = _scenes(style, seed, motion=False)
    files: dict[str, list[Path]] = {"motion": [], "text": [], "static": []}
    for number in range(count):
        scene = next(still)
        clips = {
            "motion": render.encode(next(moving)),
            "text": _encode(scene, _written(scene, WORDS[number % len(WORDS)])),
            "static": _encode(scene, render.draw(scene, 0)),
        }
        for group, content in clips.items():
            path = folder / group / f"{number:04d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
            files[group].append(path)
    return files


def _scenes(style: str, seed: int, *, motion: bool) -> Iterator[Scene]:
    """Videos in which something moves throughout, or which have no event at all."""
    for index in range(SCENES):
        scene = scene_of(style, seed, SPLIT, index, SCENES)
        if scene.theme == (("motion",) if motion else ()):
            yield scene


def _encode(scene: Scene, picture: np.ndarray) -> bytes:
    """A video of one picture, as long as the scene."""
    pictures = [picture] * scene.frames
    return render.encode_video(pictures, scene.width, scene.height, scene.fps)


def _written(scene: Scene, word: str) -> np.ndarray:
    """The empty canvas of a scene with a word in its middle, uint8[height, width, 3]."""
    image = Image.fromarray(render.background(scene))
    drawing, size = ImageDraw.Draw(image), scene.height // 2
    while size > 6 and drawing.textlength(word, ImageFont.load_default(size)) > 0.9 * scene.width:
        size -= 1
    ink = "white" if scene.grey < 128 else "black"
    middle = (scene.width / 2, scene.height / 2)
    drawing.text(middle, word, ink, ImageFont.load_default(size), anchor="mm")
    return np.asarray(image)
