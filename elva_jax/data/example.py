"""The example: the type that every reader returns and the pipeline decodes."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Media:
    """A video or still image.

    Attributes:
      source: its encoded bytes, the path of a file or of a folder of frames, or the paths of the
        frames in order, one per second.
      kind: which of the two it is.
      start: seconds from its first frame where the excerpt that is meant begins.
      end: seconds where the excerpt ends; None: at the end of the video.
      frames: number of frames to sample from it; None: as many as the stage says.
    """

    source: bytes | str | tuple[str, ...]
    kind: Literal["video", "image"]
    _: dataclasses.KW_ONLY
    start: float = 0.0
    end: float | None = None
    frames: int | None = None

    @property
    def span(self) -> tuple[float, float | None]:
        """Start and end of the excerpt."""
        return self.start, self.end


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
