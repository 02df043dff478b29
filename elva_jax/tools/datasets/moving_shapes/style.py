"""The looks of a builder config: palette, shapes, canvases, lengths."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping

COLOURS = types.MappingProxyType(
    {
        "red": (225, 30, 30),
        "green": (25, 150, 40),
        "blue": (35, 70, 235),
        "yellow": (245, 215, 20),
        "purple": (160, 40, 190),
        "cyan": (20, 200, 215),
        "orange": (250, 130, 20),
        "pink": (250, 130, 190),
    }
)
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "star")
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
DIRECTIONS = ("left", "right", "up", "down")


@dataclasses.dataclass(frozen=True)
class Style:
    """The parameters of a builder config.

    Lengths are pixels of a canvas with a longest edge of 64 or less; larger canvases scale them up.
    """

    name: str
    colours: tuple[str, ...]  # names in COLOURS
    shapes: tuple[str, ...]
    canvases: tuple[tuple[int, int], ...]  # (width, height)
    greys: tuple[tuple[int, int], ...]  # ranges of the background's gray level
    sizes: Mapping[str, float]  # name -> radius; texts never mention the only size
    frames: range  # numbers of frames of a video
    fps: tuple[int, ...]
    jitter: float  # largest distance of a center from its lattice point, on either axis
    noise: tuple[int, int]  # range of the standard deviation of the background, in gray levels
    distinct: bool  # the objects of a scene differ in both colour and shape, not only in the pair
    movers: int  # most moving objects
    speed: tuple[float, float]  # range of pixels moved between two of four sampled frames
    # Objects move along rows and columns of places, and are at a place in every sampled frame if
    # the speed fits.
    lanes: bool
    varied: bool  # more wordings than the plain ones


EASY = Style(
    name="easy",
    colours=("red", "green", "blue", "yellow", "purple", "cyan"),
    shapes=SHAPES[:4],
    canvases=((48, 48),),
    greys=((16, 16),),
    sizes=types.MappingProxyType({"medium": 7.0}),
    frames=range(8, 17, 4),
    fps=(8,),
    jitter=0.0,
    noise=(0, 0),
    distinct=True,
    movers=1,
    speed=(16.0, 16.0),
    lanes=True,
    varied=False,
)
HARD = Style(
    name="hard",
    colours=tuple(COLOURS),
    shapes=SHAPES,
    canvases=((64, 64), (96, 72), (80, 64), (56, 64), (72, 96), (90, 60), (64, 48)),
    greys=((0, 60), (190, 250)),
    sizes=types.MappingProxyType({"small": 6.5, "large": 9.5}),
    frames=range(8, 25),
    fps=(8, 10, 12),
    jitter=2.0,
    noise=(0, 6),
    distinct=False,
    movers=2,
    speed=(12.0, 17.0),
    lanes=False,
    varied=True,
)
STYLES = types.MappingProxyType({"easy": EASY, "hard": HARD})
