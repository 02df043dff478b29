"""Conversations with earlier turns as prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from elva_jax.data import conversation
from elva_jax.data.example import Example, Turn
from elva_jax.errors import DataError
from elva_jax.inference.long_context import check_letters
from elva_jax.inference.prompts import PromptReader
from elva_jax.utils.numbers import shown
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text

MARKER = "<video>"  # the place of a medium, image or video, in a question
SYSTEM = ("system", "developer")  # roles
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Dialogue(Generic[M]):
    """A conversation up to the question that is to be answered.

    Attributes:
      turns: questions with markers in the places of their media, and their answers; the last
        answer is not read.
      media: in the order of the markers.
      system: the system turn; "": that of the stage.
    """

    turns: tuple[tuple[str, str], ...]
    media: tuple[M, ...] = ()
    system: str = ""


def single_turn(text: str, media: Sequence[M], system: str = "") -> Dialogue[M]:
    """One question: media first, unless the text has a marker for each of them."""
    if not media or len(conversation.MARKER.findall(text)) != len(media):
        text = "\n".join([MARKER] * len(media) + [conversation.escape(text)])
    return Dialogue(turns=((text, ""),), media=tuple(media), system=system)


def from_messages(
    messages: Sequence[Mapping[str, Any]], read: Callable[[Any], tuple[str, Sequence[M]]]
) -> Dialogue[M]:
    """The conversation of messages with roles; questions that follow one another are joined.

    Args:
      messages: the first ones may be of the system, the last one is a question.
      read: the text of a message's content, with markers, and its media.

    Raises:
      DataError: roles out of order.
    """
    system: list[str] = []
    turns: list[list[str]] = []
    media: list[M] = []
    for message in messages:
        text, found = read(message.get("content"))
        role = message.get("role")
        if role in SYSTEM and not turns and not found:
            system.append(conversation.unescape(text))
        elif role == "user":
            if turns and not turns[-1][1]:
                turns[-1][0] += f"\n{text}"
            else:
                turns.append([text, ""])
        elif role == "assistant" and turns and not turns[-1][1] and text.strip() and not found:
            turns[-1][1] = conversation.unescape(text)
        else:
            raise DataError(f"a message of the role '{shown(role)}' cannot stand where it stands")
        media += found
    if not turns or turns[-1][1]:
        raise DataError("the messages do not end with a question")
    said = tuple((question, answer) for question, answer in turns)
    return Dialogue(turns=said, media=tuple(media), system="\n".join(system))


def dialogue_parts(
    model: PromptReader,
    turns: Sequence[tuple[str, str]],
    visuals: Sequence[Visual],
    system: str = "",
) -> list[Text | Clip]:
    """A conversation as the model reads it, up to where its last answer begins.

    Args:
      model: reads prompts.
      turns: as of a `Dialogue`.
      visuals: the media in the order of the markers.
      system: the system turn; "": that of the stage.

    Raises:
      DataError: an empty answer of an earlier turn, or markers that do not match the media.
      LayoutError: text that is far too long.
    """
    check_letters(model.model_config, system, *(text for turn in turns for text in turn))
    *earlier, (last, _) = turns
    example = Example("the prompt", (), (*(Turn(*turn) for turn in earlier), Turn(last, "answer")))
    clips = [visual.clip for visual in visuals]
    system = system or model.data.system_prompt
    return conversation.render_prompt(example, model.tokenizer, clips, system, model.form)
