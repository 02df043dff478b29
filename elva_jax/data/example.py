"""The typed example that every reader yields and the pipeline takes."""

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
    """One question and its answer.

    Attributes:
      question: text; `<image>` and `<video>` stand where a medium belongs.
      answer: text.
      task: object, caption, open or choice.
      family: the topic of the question, such as color or order.
      options: the candidate answers in words, if there are any.
      about: names the fact asked for. Turns about the same fact would reveal each other's answer,
        and never share a conversation; "": no other turn is about it.
    """

    question: str
    answer: str
    _: dataclasses.KW_ONLY
    task: str = "open"
    family: str = ""
    options: tuple[str, ...] = ()
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation about some media.

    Attributes:
      key: names the record in messages.
      media: in the order of their markers.
      turns: questions and answers.
      ordered: whether later turns build on earlier ones, so that order and completeness matter.
      independent: whether the turns are separate questions about the same media, none of which may
        see another.
      system: the conversation's own system turn; "": the stage's.
    """

    key: str
    media: tuple[Media, ...]
    turns: tuple[Turn, ...]
    _: dataclasses.KW_ONLY
    ordered: bool = False
    independent: bool = False
    system: str = ""
