"""Requests to a continuous-batching engine, and the events that answer them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from elva_jax.inference import batching
from elva_jax.inference.media import Prompt
from elva_jax.inference.prefilled import Answer
from elva_jax.inference.prompts import PromptReader
from elva_jax.inference.sampling import GREEDY, Sampling
from elva_jax.ops.merging import Merging
from elva_jax.utils import numbers
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Text

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits of a `ContinuousEngine`.

    Attributes:
      slots: most requests that decode at once.
      queue: most requests that wait; one more is refused.
      prefix_bytes: most bytes of device memory for the prefixes that nobody is reading; those in
        use come on top.
      context: most tokens of a request's prefix, before merging.
      smallest: shorter prefixes are padded to this length, so that there are fewer programs.
      question: most tokens after the prefix, up to where the answer begins.
      max_new_tokens: most tokens of an answer.
      joins: most requests whose questions are fed together.
      dispatch_seconds: about how long one dispatch decodes before requests may join or leave, and
        for how long they may join before the next one; while others still wait for a free slot, it
        decodes one token.

    Raises:
      ConfigError: a value that is out of range.
    """

    slots: int = 16
    queue: int = 64
    prefix_bytes: int = 2 << 30
    context: int = 4096
    smallest: int = 64
    question: int = 512
    max_new_tokens: int = 512
    joins: int = 4
    dispatch_seconds: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in ("prefix_bytes", "dispatch_seconds"):
                numbers.TOKENS.check(field.name, getattr(self, field.name))
        numbers.whole(0, 1 << 50).check("prefix_bytes", self.prefix_bytes)
        numbers.SECONDS.check("dispatch_seconds", self.dispatch_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One question to a `ContinuousEngine`; `request` makes one.

    Attributes:
      prompt: chat header and clips, and the token ids that follow.
      media: the clips' patches, in order.
      prefix_key: requests with equal keys share one prefill; see `prefix_key`.
      merging: whether the model's merging layers act, or others instead.
      max_new_tokens: longest answer.
      sampling: how tokens are chosen.
      stream: whether the ticket has a `Delta` for every piece of the answer, or `Done` alone.
    """

    prompt: batching.Prompt
    media: tuple[Visual, ...]
    prefix_key: str
    merging: bool | Merging = True
    max_new_tokens: int = 64
    sampling: Sampling = GREEDY
    stream: bool = True

    def __post_init__(self) -> None:
        numbers.TOKENS.check("max_new_tokens", self.max_new_tokens)


def prefix_key(
    prefix: Sequence[Text | Clip], media: Sequence[Visual], *, merging: bool | Merging
) -> str:
    """The hash of everything on which the keys and values of a prefix depend."""
    digest = hashlib.sha256(repr((tuple(prefix), merging)).encode())
    for item in media:
        digest.update(np.ascontiguousarray(item.patches).data)
    return digest.hexdigest()


def request(
    model: PromptReader,
    media: Sequence[Visual],
    prompt: Prompt,
    *,
    merging: bool | Merging = True,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stream: bool = True,
) -> GenerationRequest:
    """A request from media that have been read; for any thread.

    Raises:
      ConfigError: `max_new_tokens` out of range.
      LayoutError: an empty question.
      DataError: places in the prompt that do not match the media.
    """
    return from_parts(
        model.prompt_parts(prompt, media),
        media,
        merging=merging,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stream=stream,
    )


def from_parts(
    parts: Sequence[Text | Clip],
    media: Sequence[Visual],
    *,
    merging: bool | Merging = True,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stream: bool = True,
) -> GenerationRequest:
    """`request` of a rendered conversation, whose clips are the media in order.

    Raises:
      ConfigError: `max_new_tokens` out of range.
      LayoutError: the conversation is empty, or ends with a clip.
    """
    split = batching.split_prompt(parts)
    return GenerationRequest(
        prompt=split,
        media=tuple(media),
        prefix_key=prefix_key(split.prefix, media, merging=merging),
        merging=merging,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stream=stream,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Where the time of a request went; what did not take place is 0."""

    queue: float = 0.0  # from `submit` until its prefill began
    prefill: float = 0.0  # the prefix; 0 where another request had prefilled it
    feed: float = 0.0  # the question, up to the first token
    decode: float = 0.0  # from the first token to the last
    first_token: float = 0.0  # from `submit` to the first token
    total: float = 0.0  # from `submit` to `Done`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """The next piece of an answer; joined, the pieces are the text of `Done.answer`.

    A piece never ends within a character, and what may become a stop string is held back.
    """

    text: str
    tokens: int  # tokens of the answer so far


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """The end of a request, which is the last event of its ticket.

    Attributes:
      finish_reason: "stop" at an ending token or a stop string, "length" at the request's or the
        model's limit, "cancelled", or "error".
      answer: as far as it was decoded.
      error: what a user may read about an error, else "".
      prompt_tokens: tokens of the prompt, before any merging.
      completion_tokens: tokens that were decoded, the ending one apart.
      merged_tokens: tokens of the prefix that each layer block worked on; () before the prefill.
      shared_prefix: whether another request had prefilled the prefix.
      seconds: per stage.
    """

    finish_reason: FinishReason
    answer: Answer
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    merged_tokens: tuple[int, ...] = ()
    shared_prefix: bool = False
    seconds: Seconds = Seconds()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """Counters of an engine since its start, and what it is doing.

    Attributes:
      healthy: whether the worker thread lives and its devices answer.
      draining: whether new requests are refused because the engine is about to end.
      running: requests in slots.
      queued: requests that wait for one.
      slots: most that run at once.
      finished: requests that have ended, by finish reason.
      prefix_hits: requests whose prefix had been prefilled for another one.
      prefix_misses: prefixes that were prefilled.
      prefix_bytes: device memory of all prefixes that are kept.
      prompt_tokens: tokens of all prompts that began, before any merging.
      completion_tokens: decoded tokens.
      steps: steps of the running batch.
      compilations: programs that the worker has compiled since `warm_up`.
    """

    healthy: bool
    draining: bool
    running: int
    queued: int
    slots: int
    finished: dict[str, int]
    prefix_hits: int
    prefix_misses: int
    prefix_bytes: int
    prompt_tokens: int
    completion_tokens: int
    steps: int
    compilations: int
