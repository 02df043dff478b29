"""The bodies of OpenAI's chat completions: requests in, responses out.

    {"messages": [{"role": "user", "content": [
        {"type": "video_url", "video_url": {"url": "clip.mp4"}},
        {"type": "text", "text": "What moves?"}]}], "max_tokens": 64}

Parts are text, image_url and video_url; also image, video, input_text, input_image and input_video.
A part of a video may have start, end and nframes, as in training data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from elva_jax.data import conversation
from elva_jax.data.example import Media
from elva_jax.data.readers import fields
from elva_jax.errors import ConfigError, DataError, RecordError, RequestError
from elva_jax.inference.batches.dialogue import MARKER, Dialogue, from_messages
from elva_jax.inference.batches.queries import Writing
from elva_jax.inference.prefilled import Answer
from elva_jax.inference.request_settings import KEYS
from elva_jax.utils import numbers
from elva_jax.utils.numbers import shown

Locate = Callable[[Any], "str | bytes"]  # the path or bytes of a medium; may raise RecordError

LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens")
NUMBERS: Mapping[str, numbers.Range] = {
    "temperature": numbers.TEMPERATURE,
    "top_p": numbers.SHARE,
    "repetition_penalty": numbers.POSITIVE,
    "seed": numbers.SEED,
}
USED = (*LENGTHS, *NUMBERS, "stop", "model", "messages", "media_io_kwargs", "frames", *KEYS)
STREAMING = ("stream", "stream_options")
# Keys that ask for what a model of one answer cannot give, and the values that do not.
TRIVIAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "logprobs": (False, 0, None),
    "top_logprobs": (0, None),
    "tools": ([], None),
    "functions": ([], None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
}
TEXTS = ("text", "input_text")
PARTS: Mapping[str, Literal["image", "video"]] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
}
MOST_STOPS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """The request that a body holds.

    Attributes:
      dialogue: the conversation.
      writing: how the answer is written.
      model: the name that the body has; "": none.
      ignored: keys that mean nothing here.
    """

    dialogue: Dialogue[Media]
    writing: Writing
    model: str
    ignored: tuple[str, ...]


def parse_chat(body: Any, locate: Locate, default: Writing) -> ChatRequest:
    """Reads the body of a request.

    Args:
      body: the decoded JSON.
      locate: finds a medium by its URL or path.
      default: how an answer is written where the body does not say.

    Raises:
      RequestError: something that cannot be read or done; its name is the key.
    """
    if not isinstance(body, Mapping):
        raise RequestError("body", f"is {shown(body)}, no JSON object")
    for name, allowed in TRIVIAL.items():
        if name in body and body[name] not in allowed:
            raise RequestError(name, f"{shown(body[name])} is not supported")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise RequestError("model", "is no text")
    ignored = tuple(str(name)[:80] for name in body if name not in (*USED, *STREAMING, *TRIVIAL))
    return ChatRequest(
        dialogue=_dialogue(body, locate),
        writing=parse_writing(body, default),
        model=model or "",
        ignored=ignored,
    )


def parse_writing(given: Mapping[str, Any], default: Writing) -> Writing:
    """How an answer is written, from the keys of a body or a record that mean something here.

    Raises:
      RequestError: a value that cannot be.
    """
    found: dict[str, Any] = {name: given[name] for name in NUMBERS if given.get(name) is not None}
    length = next((name for name in LENGTHS if given.get(name) is not None), "")
    stop = given.get("stop")
    if not found and not length and stop is None:
        return default
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        texts = isinstance(stops, list) and all(isinstance(text, str) for text in stops)
        if not texts or len(stops) > MOST_STOPS:
            raise RequestError("stop", f"must be at most {MOST_STOPS} texts, got {shown(stop)}")
        found["stop"] = tuple(dict.fromkeys(filter(None, stops)))
    try:
        if length:
            numbers.TOKENS.check(length, given[length])
        for name, allowed in NUMBERS.items():
            if name in found:
                allowed.check(name, found[name])
                found[name] = allowed.kind(found[name])
    except ConfigError as error:
        raise _refused(error) from None
    sampling = dataclasses.replace(default.sampling, **found)
    most = given[length] if length else default.max_new_tokens
    return Writing(max_new_tokens=most, sampling=sampling)


def _dialogue(body: Mapping[str, Any], locate: Locate) -> Dialogue[Media]:
    messages = body.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("messages", "must be a list with at least one message")
    if not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("messages", "has an entry that is no object")
    frames = _frames(body)

    def read(content: Any) -> tuple[str, list[Media]]:
        return _content(content, locate, frames)

    try:
        dialogue = from_messages(messages, read)
    except RecordError as error:
        raise RequestError("messages", error.reason) from None
    except DataError as error:
        raise RequestError("messages", str(error)) from None
    texts = (dialogue.system, *(text for turn in dialogue.turns for text in turn))
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise RequestError("messages", "has text that is not valid Unicode")
    return dialogue


def _frames(body: Mapping[str, Any]) -> int | None:
    """Frames of a video where its part does not say: `frames`, or as vLLM has it."""
    name, value = "frames", body.get("frames")
    options = body.get("media_io_kwargs")
    if value is None and isinstance(options, Mapping) and isinstance(options.get("video"), Mapping):
        name, value = "media_io_kwargs", options["video"].get("num_frames")
    if value is None or (name != "frames" and value == -1):  # vLLM: all
        return None
    try:
        numbers.FRAMES.check(name, value)
    except ConfigError as error:
        raise _refused(error) from None
    return int(value)


def _refused(error: ConfigError) -> RequestError:
    """The error about one key of a request, from that of `Range.check`."""
    name, _, reason = str(error).partition(": ")
    return RequestError(name.partition("=")[0], reason)


def _content(content: Any, locate: Locate, frames: int | None) -> tuple[str, list[Media]]:
    """The text of a message, with markers, and its media."""
    if isinstance(content, str) or content is None:
        return conversation.escape(content or ""), []
    if not isinstance(content, list):
        raise DataError(f"the content of a message is {shown(content)}, neither text nor parts")
    texts: list[str] = []
    media: list[Media] = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in TEXTS and isinstance(part.get("text"), str):
            texts.append(conversation.escape(part["text"]))
        elif isinstance(kind, str) and kind in PARTS:
            media.append(_medium(part, kind, locate, frames))
            texts.append(MARKER)
        else:
            raise DataError(
                f"a message has a part of type {shown(kind)}; text, image_url and video_url are"
                " read"
            )
    return "\n".join(texts), media


def _medium(part: Mapping[str, Any], kind: str, locate: Locate, frames: int | None) -> Media:
    medium = PARTS[kind]
    named = next(
        (part[n] for n in (kind, f"{medium}_url", medium) if part.get(n) is not None), None
    )
    url = named.get("url") if isinstance(named, Mapping) else named
    if not isinstance(url, str):
        raise DataError(f"a part of type {kind} names no {medium}")
    found = fields.of_part(Media(locate(url), medium), part, "messages")
    if medium == "video" and found.frames is None and frames:
        return dataclasses.replace(found, frames=frames)
    return found


def completion(
    answer: Answer, tokens: Sequence[int], *, name: str, model: str, created: int
) -> dict[str, Any]:
    """The body of a response.

    Args:
      answer: what the model says.
      tokens: length of the prompt before merging, then after each merging layer.
      name: unique; the id without its prefix.
      model: name of the model.
      created: seconds since 1970.
    """
    written = len(answer.tokens)
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": None,
                "finish_reason": finish_reason(answer),
            }
        ],
        "usage": usage(tokens[0], written),
        "elva": {"merged_tokens": list(tokens[1:])},
    }


def finish_reason(answer: Answer) -> str:
    """Why an answer ends."""
    return "stop" if answer.finished else "length"


def usage(prompt: int, written: int) -> dict[str, int]:
    """The number of tokens read, before merging, and written."""
    total = prompt + written
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total}


def error_body(error: Exception, code: str | None = None) -> dict[str, Any]:
    """The fields of an error that a client shows."""
    param = error.name if isinstance(error, RequestError) else None
    return {"message": str(error), "type": "invalid_request_error", "param": param, "code": code}
