"""One record of the data set from its number: scene, texts and file."""

from __future__ import annotations

import json

from elva_jax.tools.datasets.moving_shapes import language, render
from elva_jax.tools.datasets.moving_shapes.scene import Scene, sample
from elva_jax.tools.datasets.moving_shapes.style import STYLES

SPLITS = ("image", "train", "validation", "test", "long")
# The first records of these splits show a single object (or digit): an easy start.
SINGLE_SHARE = {"image": 0.3, "train": 0.2}


def scene_of(style: str, seed: int, split: str, index: int, total: int) -> Scene:
    """The scene of record `index` of the `total` in a split."""
    single = index < SINGLE_SHARE.get(split, 0) * total
    return sample(STYLES[style], seed, split, index, single=single)


def annotation_of(style: str, seed: int, split: str, index: int, total: int) -> dict:
    """The annotation of a record without its pixels, in a fraction of a millisecond."""
    return language.annotate(
        scene_of(style, seed, split, index, total), STYLES[style], seed, split, index
    )


def record_of(style: str, seed: int, split: str, index: int, total: int) -> dict[str, str | bytes]:
    """A whole record; a pure function of its arguments, in any order and any process.

    Returns:
      {"id", "media" (an MP4 or PNG file), "kind" (video | image), "annotation" (UTF-8 JSON)}.
    """
    scene = scene_of(style, seed, split, index, total)
    annotation = language.annotate(scene, STYLES[style], seed, split, index)
    return {
        "id": f"{style}-{split}-{index:06d}",
        "media": render.encode(scene),
        "kind": "image" if scene.frames == 1 else "video",
        "annotation": json.dumps(annotation).encode(),
    }


def record_of_task(task: tuple[str, int, str, int, int]) -> dict[str, str | bytes]:
    """`record_of` with its arguments in one tuple, for process pools."""
    return record_of(*task)
