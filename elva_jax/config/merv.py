"""Which frames of a video each encoder of MERV sees, and in which shape (arXiv 2501.01426).

With num_frames = 32 and slots = 16, every slot has two frames. An encoder of images, or one
without tubelets, sees the first of them, ViViT with tubelets of 2 both:

    frame       0  1 | 2  3 | ... | 30 31
    slot          0  |   1  | ... |   15
    image tower  x   |  x   | ... |  x         16 frames
    ViViT        x x |  x x | ... |  x x       32 frames, 16 steps in time

A view is one picture of every slot. Encoders with the same view share its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from elva_jax.config.tower_schema import MervConfig, TeacherConfig
from elva_jax.errors import ConfigError

Geometry = Literal["stretch", "bicubic", "bilinear", "crop"]
# How MERV's code brings frames to a square; other kinds of towers as SigLIP and DINOv2.
PUBLISHED: dict[str, Geometry] = {"vivit": "bilinear", "languagebind": "crop"}


RANDOM = "random"  # `init_from` of an encoder that keeps the weights it is declared with


class View(NamedTuple):
    """One picture of every slot."""

    geometry: Geometry
    size: int  # side in pixels
    offset: int  # frame of the slot, from 0


def encoder_frames(merv: MervConfig, encoder: TeacherConfig) -> int:
    """Number of frames that an encoder sees: whole clips, and a whole number for every slot.

    Raises:
      ConfigError: they are not every k-th of the frames that are read.
    """
    frames = math.lcm(merv.slots * encoder.tubelet, encoder.num_frames)
    if merv.num_frames % frames:
        raise ConfigError(
            f"model.merv.num_frames: {merv.num_frames} is no multiple of the {frames} frames that"
            f" a {encoder.kind} with clips of {encoder.num_frames} and tubelets of"
            f" {encoder.tubelet} needs for model.merv.slots = {merv.slots}; set it to a multiple"
        )
    return frames


def encoder_views(merv: MervConfig, encoder: TeacherConfig) -> tuple[View, ...]:
    """The views that an encoder sees, in order of time within a slot."""
    stretched = merv.geometry == "stretch"
    geometry = "stretch" if stretched else PUBLISHED.get(encoder.kind, "bicubic")
    in_slot = merv.num_frames // merv.slots
    stride = merv.num_frames // encoder_frames(merv, encoder)
    return tuple(View(geometry, encoder.image_size, k) for k in range(0, in_slot, stride))


def all_views(merv: MervConfig, encoders: Sequence[TeacherConfig]) -> tuple[View, ...]:
    """The views of all encoders, each once, in the order of the first encoder that sees it."""
    return tuple(dict.fromkeys(view for each in encoders for view in encoder_views(merv, each)))


def clip_tokens(merv: MervConfig) -> int:
    """Visual tokens of a clip."""
    copies = len(merv.encoders) if merv.fusion == "sequence" else 1
    return copies * merv.slots * merv.grid**2


def values_per_patch(merv: MervConfig, encoders: Sequence[TeacherConfig]) -> int:
    """K, the numbers of one patch: a clip's tokens share the pixels of its views evenly."""
    pixels = sum(view.size**2 for view in all_views(merv, encoders))
    return -(-merv.slots * pixels * 3 // clip_tokens(merv))
