"""The example: the type that every reader returns and the pipeline decodes."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Media:
    """A video or still image: its encoded bytes, or the path of a file or folder of frames."""

    source: bytes | str
    kind: Literal["video", "image"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
      question: text; `<image>` and `<video>` mark the places of the media.
      answer: text.
      task: "object", "caption", "open" or "choice".
      family: the topic of the question, such as color or order.
      options: the candidate answers in words, if there are any.
      about: name of the fact that the question asks for. Turns about the same fact would reveal
        each other's answer, so they never share a conversation; "": no other turn asks for it.
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
      key: name of the record in messages.
      media: media in the order of their markers.
      turns: questions and answers.
      ordered: whether later turns depend on earlier ones, so that none may be moved or left out.
      independent: whether the turns are separate questions about the same media that must not
        attend to each other.
      system: the system turn of the conversation; "": that of the stage.
    """

    key: str
    media: tuple[Media, ...]
    turns: tuple[Turn, ...]
    _: dataclasses.KW_ONLY
    ordered: bool = False
    independent: bool = False
    system: str = ""
