"""The requests of lmms-eval as questions to the model.

Tuples of a request's `args`, as they really are in 0.7.3:

    simple  (context, generation_kwargs, doc_to_visual, doc_id, task, split)
            (context, option or doc_to_target, doc_to_visual, doc_id, task, split)
            (context, generation_kwargs, doc_to_visual, doc_to_text, doc_id, task, split)
    chat    (context, doc_to_messages, generation_kwargs, doc_id, task, split)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elva_jax.data import conversation
from elva_jax.errors import DataError, ElvaError
from elva_jax.evaluation.lmms.media import Medium, read_visual, read_visuals
from elva_jax.inference.batches import dialogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """A conversation up to the question that is to be answered.

    Attributes:
      turns: questions with markers in the places of their media, and their answers; the last
        answer is "".
      media: in the order of the markers.
      system: the system turn; "": that of the stage.
      refused: why it cannot be asked; "": it can.
    """

    turns: tuple[tuple[str, str], ...] = ()
    media: tuple[Medium, ...] = ()
    system: str = ""
    refused: str = ""


def guarded(make: Callable[[], Ask]) -> Ask:
    """Runs task code, which ends the process where a file is missing, and keeps the reason."""
    try:
        return make()
    except SystemExit as error:
        return Ask(refused=f"the task ended the process: {error.code}")
    except (OSError, ElvaError) as error:
        return Ask(refused=str(error) or type(error).__name__)


def simple_ask(context: str, visuals: Any) -> Ask:
    """The question of the simple interface: media first, unless the text has a place for each."""
    return _ask(dialogue.single_turn(context, read_visuals(visuals)))


def chat_ask(messages: Sequence[Mapping[str, Any]]) -> Ask:
    """The conversation of the chat interface.

    Raises:
      DataError: roles out of order, or a content that is neither text nor a medium.
    """
    return _ask(dialogue.from_messages(messages, _content))


def _ask(said: dialogue.Dialogue[Medium]) -> Ask:
    return Ask(turns=said.turns, media=said.media, system=said.system)


def _content(content: Any) -> tuple[str, list[Medium]]:
    """The text of a message, with markers, and its media."""
    if isinstance(content, str):
        return conversation.escape(content), []
    texts: list[str] = []
    media: list[Medium] = []
    for part in content or ():
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(conversation.escape(str(part.get("text", ""))))
        elif kind in ("video", "image") or _is_webm(part):
            media.append(read_visual(part.get("url", part.get(str(kind))), dict(part)))
            texts.append(dialogue.MARKER)
        else:
            raise DataError(
                f"a message has a part of type {kind!r}; text, image and video are read"
            )
    return "\n".join(texts), media


def _is_webm(part: Any) -> bool:
    """Whether a part is a WebM video, which lmms-eval takes for sound by its ending."""
    named = isinstance(part, Mapping) and part.get("type") == "audio"
    return named and str(part.get("url")).lower().endswith(".webm")
