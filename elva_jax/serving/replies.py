"""Replies in OpenAI's format: a body, or the events of a stream."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from elva_jax.inference.chat_completions import completion, usage
from elva_jax.inference.continuous.requests import Done
from elva_jax.serving.questions import Question

DONE = b"data: [DONE]\n\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer on its way to a client.

    Attributes:
      question: what was asked.
      name: the id without its prefix.
      created: seconds since 1970.
    """

    question: Question
    name: str
    created: int

    def body(self, done: Done) -> dict[str, Any]:
        """The whole answer."""
        tokens = (done.prompt_tokens, *done.merged_tokens)
        body = completion(
            done.answer, tokens, name=self.name, model=self.question.model, created=self.created
        )
        body["choices"][0]["finish_reason"] = done.finish_reason
        body["usage"] = usage(done.prompt_tokens, done.completion_tokens)
        body["elva"] = self._elva(done)
        return body

    def first(self) -> dict[str, Any]:
        """The event before the first piece."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        """One piece of the answer."""
        return self._chunk({"content": text})

    def last(self, done: Done) -> dict[str, Any]:
        """The event after the last piece."""
        return self._chunk({}, done.finish_reason) | {"elva": self._elva(done)}

    def usage(self, done: Done) -> dict[str, Any]:
        """The event with the numbers of tokens, which has no choices."""
        counts = usage(done.prompt_tokens, done.completion_tokens)
        return {**self._head(), "choices": [], "usage": counts}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head(), "choices": [choice]}

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.name}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.question.model,
        }

    def _elva(self, done: Done) -> dict[str, Any]:
        """Fields that only an ELVA has: tokens after each merging layer, frames, and seconds."""
        seconds = {"read": self.question.read_seconds, **dataclasses.asdict(done.seconds)}
        return {
            "merging": self.question.merging,
            "merged_tokens": list(done.merged_tokens),
            "frames": list(self.question.frames),
            "shared_prefix": done.shared_prefix,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }


def event(body: dict[str, Any]) -> bytes:
    """A body as an event of a stream; line ends in it are escaped by JSON."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
