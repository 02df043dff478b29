"""From the body of a request to the question of an engine; runs in threads."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any, cast

from elva_jax.data import conversation
from elva_jax.data.chat_tokens import may_fit
from elva_jax.data.example import Media
from elva_jax.errors import ConfigError, RequestError, printable
from elva_jax.inference.batches.dialogue import Dialogue, dialogue_parts
from elva_jax.inference.batches.queries import Writing
from elva_jax.inference.chat_completions import parse_chat
from elva_jax.inference.continuous.requests import GenerationRequest, from_parts
from elva_jax.inference.prompts import PromptReader
from elva_jax.inference.request_settings import chosen_merging, read_hybrid, read_merging
from elva_jax.serving.media import MediaReader
from elva_jax.serving.problems import HttpError
from elva_jax.serving.settings import ServeSettings
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import parse_json
from elva_jax.video.hybrid import Hybrid

UNNAMED = ("user", "metadata", "store", "frequency_penalty", "presence_penalty")  # ignored keys
FEWEST_TOKENS = 3  # of a frame: a patch, its line, and the frame itself
MOST_NAMED = 100  # ignored keys that are logged in a server's life
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A request that can be submitted.

    Attributes:
      request: what the engine takes.
      model: the name that the client has for the model.
      stream: whether the answer comes in pieces.
      usage: whether the stream ends with the number of tokens.
      merging: true, false, or the name of the merging settings.
      frames: of each image or video.
      read_seconds: that reading the media and rendering the prompt took.
    """

    request: GenerationRequest
    model: str
    stream: bool
    usage: bool
    merging: bool | str
    frames: tuple[int, ...]
    read_seconds: float


class QuestionReader:
    """Reads the bodies of requests.

    Args:
      model: renders prompts; requests may name its merging profiles.
      media: finds and reads their media.
      settings: names and limits.
      frames: how videos are sampled where a request does not say.
    """

    def __init__(
        self,
        model: PromptReader,
        media: MediaReader,
        settings: ServeSettings,
        frames: int | Hybrid | None = None,
    ) -> None:
        self._model, self._media, self._settings = model, media, settings
        self._default_frames = frames
        self._named: set[str] = set()

    def read(self, content: bytes) -> Question:
        """The question in a body.

        Raises:
          HttpError: no JSON, or another model's name.
          ElvaError: something else that cannot be done.
        """
        began = time.monotonic()
        body = self._parse(content)
        default = Writing(max_new_tokens=self._settings.max_new_tokens)
        located = _Counting(self._media)
        chat = parse_chat(body, located.locate, default)
        model = self._known(chat.model)
        self._name_ignored(chat.ignored)
        stream, usage = _streaming(body)
        frames = self._frames(body, chat.dialogue)
        profiles = self._model.merging_profiles
        named = read_merging(body, profiles)
        merging = True if named is None else named
        _check_text(chat.dialogue, self._settings.max_prompt_tokens)
        visuals = self._media.read(chat.dialogue.media, frames)
        parts = dialogue_parts(self._model, chat.dialogue.turns, visuals, chat.dialogue.system)
        request = from_parts(
            parts,
            visuals,
            merging=chosen_merging(merging, profiles),
            max_new_tokens=min(chat.writing.max_new_tokens, self._settings.max_new_tokens),
            sampling=chat.writing.sampling,
            stream=stream,
        )
        return Question(
            request=request,
            model=model,
            stream=stream,
            usage=usage,
            merging=merging,
            frames=tuple(len(visual.clip.grids) for visual in visuals),
            read_seconds=time.monotonic() - began,
        )

    def _parse(self, content: bytes) -> Mapping[str, Any]:
        try:
            body = parse_json(content)
        except ValueError as error:
            raise HttpError(400, f"the body is not JSON: {error}", code="invalid_json") from None
        if not isinstance(body, dict):
            raise HttpError(400, "the body is no JSON object", code="invalid_json")
        return body

    def _known(self, name: str) -> str:
        names = self._settings.model_names
        if name and name not in names:
            text = f"no model {shown(name)}; this server has {', '.join(names)}"
            raise HttpError(404, text, param="model", code="model_not_found")
        return name or names[0]

    def _name_ignored(self, keys: tuple[str, ...]) -> None:
        """Logs each key that means nothing here, once."""
        new = {key for key in keys if key not in UNNAMED} - self._named
        for key in sorted(new)[: MOST_NAMED - len(self._named)]:
            self._named.add(key)
            _LOG.info("requests have the key %s, which means nothing here", printable(key))

    def _frames(self, body: Mapping[str, Any], dialogue: Dialogue[Media]) -> int | Hybrid | None:
        """How videos are sampled; refuses what cannot fit before anything is read."""
        given = read_hybrid(body, (medium.frames for medium in dialogue.media))
        try:
            frames = self._model.hybrid(**given) if given else self._default_frames
        except ConfigError as error:
            raise RequestError(next(iter(given)), str(error)) from None
        self._check_frames(dialogue, frames)
        return frames

    def _check_frames(self, dialogue: Dialogue[Media], frames: int | Hybrid | None) -> None:
        data, hybrid = self._model.data, frames if isinstance(frames, Hybrid) else None
        usual = hybrid.frames if hybrid else int(cast(Any, frames) or 0)
        count = sum(1 if m.kind == "image" else m.frames or usual for m in dialogue.media)
        if count * FEWEST_TOKENS > self._settings.max_prompt_tokens:
            raise RequestError(
                "messages",
                f"asks for {count} frames; they cannot fit a prompt of"
                f" {self._settings.max_prompt_tokens} tokens",
            )
        edge = max(hybrid.high_edge, hybrid.low_edge) if hybrid else data.longest_edge
        if max(count, 1) * edge**2 * 3 > self._settings.max_pixel_bytes:
            raise RequestError(
                "messages",
                f"asks for {count} frames of {edge} pixels, more than"
                f" {self._settings.max_pixel_bytes >> 20} MiB; ask for fewer or smaller ones",
            )


class _Counting:
    """Counts the media of one request while they are found."""

    def __init__(self, media: MediaReader) -> None:
        self._media, self._count = media, 0

    def locate(self, url: Any) -> str | bytes:
        self._count += 1
        self._media.check_number(self._count)
        return self._media.locate(url)


def _streaming(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the answer comes in pieces, and with the number of tokens at its end."""
    stream, options = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool):
        raise RequestError("stream", f"must be true or false, got {shown(stream)}")
    if not isinstance(options, dict):
        raise RequestError("stream_options", f"must be an object, got {shown(options)}")
    usage = options.get("include_usage") or False
    if not isinstance(usage, bool):
        raise RequestError("stream_options", "include_usage must be true or false")
    if options and not stream:
        raise RequestError("stream_options", "needs stream: true")
    return stream, usage


def _check_text(dialogue: Dialogue[Media], tokens: int) -> None:
    """Refuses text that is far too long before it is tokenized, and a question without text."""
    if not any(conversation.split_text(dialogue.turns[-1][0])):
        raise RequestError("messages", "the last question has no text; ask something")
    texts = [dialogue.system, *(text for turn in dialogue.turns for text in turn)]
    if not may_fit(tokens, *texts):
        raise HttpError(
            400,
            f"the text has {sum(map(len, texts)):,} characters;"
            f" the longest prompt has {tokens} tokens",
            param="messages",
            code="context_length_exceeded",
        )
