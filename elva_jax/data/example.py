"""The one typed example that every reader yields and the pipeline takes."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Media:
    """A video or a still image: its encoded bytes, or the path of a file or a folder of frames."""

    source: bytes | str
    kind: Literal["video", "image"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question and its answer; `<image>` and `<video>` in the question stand where a medium belongs."""

    question: str
    answer: str
    task: str = "open"  # object | caption | open | choice
    family: str = ""  # what is asked about, such as colour or order
    options: tuple[str, ...] = ()  # the candidate answers in words, where there are any
    about: str = ""  # turns about the same thing would give each other's answer away, and never share a conversation; "": about its own


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation about some media."""

    key: str  # names the record in messages
    media: tuple[Media, ...]
    turns: tuple[Turn, ...]
    ordered: bool = (
        False  # whether later turns build on earlier ones, so that order and completeness matter
    )
    independent: bool = False  # whether the turns are questions of their own about the same media, none of which may see another
    system: str = ""  # a system turn of its own; "": the stage's
