"""The record format of data sets that `elva data build` writes and `data/sources.py` reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from elva_jax.data.example import Example, Media, Turn

FORMAT = "elva_examples"  # name of this format in a data set's metadata


def features() -> tfds.features.FeaturesDict:
    """The TFDS features of a record.

    They are key, media (the bytes of each file), kinds ("video" or "image" for each medium) and
    conversation (UTF-8 JSON).
    """
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "media": tfds.features.Sequence(tfds.features.Scalar(np.object_)),
            "kinds": tfds.features.Sequence(tfds.features.Text()),
            "conversation": tfds.features.Scalar(np.object_),
        }
    )


def to_record(example: Example, media: Sequence[bytes]) -> dict[str, Any]:
    """Converts an example and the bytes of its media to a record."""
    return {
        "key": example.key,
        "media": list(media),
        "kinds": [medium.kind for medium in example.media],
        "conversation": json.dumps(_texts_and_excerpts(example), ensure_ascii=False).encode(),
    }


def to_example(record: Mapping[str, Any], tasks: Sequence[str] = ()) -> Example:
    """Converts a record decoded by TFDS to an example with the turns of `tasks`; (): all."""
    notes = json.loads(record["conversation"])
    turns = tuple(
        Turn(**{**turn, "options": tuple(turn.get("options", ()))}) for turn in notes.pop("turns")
    )
    excerpts = notes.pop("excerpts", [{}] * len(record["media"]))
    media = tuple(
        Media(data, kind.decode(), **meant)
        for data, kind, meant in zip(record["media"], record["kinds"], excerpts, strict=True)
    )
    return Example(
        record["key"].decode(),
        media,
        tuple(turn for turn in turns if not tasks or turn.task in tasks),
        **notes,
    )


def conversation(example: Example) -> dict[str, Any]:
    """The texts of an example as JSON; fields with default values are left out."""
    return {
        "turns": [_changed(turn) for turn in example.turns],
        **{
            name: value
            for name, value in _changed(example).items()
            if name not in ("key", "media", "turns")
        },
    }


def _texts_and_excerpts(example: Example) -> dict[str, Any]:
    """`conversation`, and which part of each medium is meant, if it is not the whole of all."""
    excerpts = [
        {
            name: value
            for name, value in _changed(medium).items()
            if name in ("start", "end", "frames")
        }
        for medium in example.media
    ]
    notes = conversation(example)
    return {**notes, "excerpts": excerpts} if any(excerpts) else notes


def _changed(value: Example | Turn | Media) -> dict[str, Any]:
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {
        field.name: found[field.name]
        for field in dataclasses.fields(value)
        if found[field.name] != field.default
    }
