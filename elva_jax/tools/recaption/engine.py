"""The interface of captioning engines: frames and a prompt in, an answer out."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import numpy as np

from elva_jax.errors import ElvaError

Kind = Literal["image", "video"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer as the model gave it."""

    text: str
    finish: str  # "stop"; "length" if the limit of new tokens cut it off; "content_filter"
    prompt_tokens: int  # 0 if the engine does not report it
    new_tokens: int


class Failed(ElvaError):
    """A request without an answer; the next start sends it again."""


class Engine(Protocol):
    """Answers prompts about frames; called from several threads at once."""

    def describe(self, kind: Kind, frames: list[np.ndarray], prompt: str) -> Reply:
        """Answers `prompt` about `frames`, uint8 [H, W, 3] each, with edges divisible by 28.

        Raises:
          Failed: this request got no answer.
          ConfigError: no request can succeed, for example with a wrong key or model.
        """

    def stop(self) -> None:
        """Ends the waiting between tries, in all threads."""
