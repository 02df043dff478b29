"""Fields of a record, or of a medium within a message, that say which part of a video is meant.

    start 1.0, end 2.5       an excerpt in seconds, or as "00:01:02.5", under several names
    nframes 8                how many frames to sample from it

Fields that would change frames in ways that no stage can follow are refused, as ignoring them would
train on other pictures than the record means.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.data.example import Media
from elva_jax.errors import RecordError
from elva_jax.utils import numbers
from elva_jax.utils.numbers import shown

STARTS = ("start", "video_start", "start_time", "start_sec", "clip_start")
ENDS = ("end", "video_end", "end_time", "end_sec", "clip_end")
COUNTS = ("nframes", "num_frames")
# Of a medium within a message: pixels and rates follow the stage's settings.
REFUSED = (
    *("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels"),
    *("resized_height", "resized_width", "start_frame", "end_frame", "crop", "bbox"),
)
CLOCK = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-9]{1,2}(?:\.[0-9]{1,9})?)")


def excerpts(record: Mapping[str, Any], media: Sequence[Media], key: str) -> tuple[Media, ...]:
    """The media of a record, its only video cut to the bounds that the record has.

    Raises:
      RecordError: a bound is no time, or bounds belong to none or to several videos.
    """
    start, end = _bounds(record, key)
    if start is None and end is None:
        return tuple(media)
    videos = [medium for medium in media if medium.kind == "video"]
    if not media:
        return ()
    if len(videos) != 1:
        raise RecordError(
            key,
            f"has bounds in seconds and {len(videos)} videos; give each of them in a message part"
            " of its own with video_start and video_end",
        )
    return tuple(_cut(medium, start, end, key) if medium in videos else medium for medium in media)


def of_part(medium: Media, part: Mapping[str, Any], key: str) -> Media:
    """A medium of a message, with the bounds and the number of frames that its part has.

    Raises:
      RecordError: a value that cannot be, or a field that cannot be followed.
    """
    for name in REFUSED:
        if part.get(name) is not None:
            raise RecordError(
                key,
                f"asks for {name} = {shown(part[name])}, which no stage follows; remove the field,"
                " and set data.fps, data.num_frames or data.longest_edge of the stage",
            )
    start, end = _bounds(part, key)
    count = _one(part, COUNTS, key)
    if medium.kind != "video" and (start is not None or end is not None or count is not None):
        raise RecordError(key, "has bounds or a number of frames for an image")
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or not count > 0:
            raise RecordError(key, f"its number of frames {shown(count)} is not a whole number")
        if count > numbers.MOST_FRAMES:
            raise RecordError(
                key, f"asks for {shown(count)} frames, more than {numbers.MOST_FRAMES}"
            )
        medium = dataclasses.replace(medium, frames=count)
    return _cut(medium, start, end, key)


def _cut(medium: Media, start: float | None, end: float | None, key: str) -> Media:
    begin = start or 0.0
    if end is not None and end <= begin:
        raise RecordError(key, f"its excerpt ends at {end:g} s, before it begins at {begin:g} s")
    return dataclasses.replace(medium, start=begin, end=end)


def _bounds(fields: Mapping[str, Any], key: str) -> tuple[float | None, float | None]:
    start, end = (_one(fields, names, key) for names in (STARTS, ENDS))
    return _seconds(start, key), _seconds(end, key)


def _one(fields: Mapping[str, Any], names: Sequence[str], key: str) -> Any:
    """The value that a field has under one of several names."""
    found = {name: fields[name] for name in names if fields.get(name) not in (None, "")}
    values = list(found.values())
    if any(value != values[0] for value in values[1:]):
        listed = " and ".join(f"{name} {shown(value)}" for name, value in found.items())
        raise RecordError(key, f"has two values for one thing: {listed}")
    return values[0] if values else None


def _seconds(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        clock = CLOCK.fullmatch(value.strip())
        try:
            value = (
                3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
                if clock
                else float(value)
            )
        except ValueError:
            raise RecordError(key, f"the time {shown(value)} is not a number of seconds") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(key, f"the time {shown(value)} is not a number of seconds")
    if not 0 <= value <= numbers.MOST_SECONDS:  # NaN is in no range
        raise RecordError(key, f"the time {shown(value)} s is not within a video")
    return float(value)
