"""Conversations with earlier turns as prompts."""

from __future__ import annotations

from collections.abc import Sequence

from elva_jax.data import conversation
from elva_jax.data.example import Example, Turn
from elva_jax.inference.prompts import PromptReader
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text


def dialogue_parts(
    model: PromptReader,
    turns: Sequence[tuple[str, str]],
    visuals: Sequence[Visual],
    system: str = "",
) -> list[Text | Clip]:
    """A conversation as the model reads it, up to where its last answer begins.

    Args:
      model: reads prompts.
      turns: questions, with markers in the places of their media, and answers; the last answer is
        not read.
      visuals: the media in the order of the markers.
      system: the system turn; "": that of the stage.

    Raises:
      DataError: an empty answer of an earlier turn, or markers that do not match the media.
    """
    *earlier, (last, _) = turns
    example = Example("the prompt", (), (*(Turn(*turn) for turn in earlier), Turn(last, "answer")))
    clips = [visual.clip for visual in visuals]
    system = system or model.data.system_prompt
    return conversation.render(example, model.tokenizer, clips, system)[:-2]
