"""What every engine is: something that looks at frames, reads a prompt and answers."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np

from elva_jax.errors import ElvaError

Kind = Literal["image", "video"]


class Reply(NamedTuple):
    """An answer as the model gave it."""

    text: str
    finish: str  # "stop"; "length" where the limit of new tokens cut it off
    prompt_tokens: int  # 0 where the engine does not tell
    new_tokens: int


class Failed(ElvaError):
    """A request that got no answer; the next start asks again."""


class Engine(Protocol):
    """An engine is called from several threads at once."""

    def describe(self, kind: Kind, frames: list[np.ndarray], prompt: str) -> Reply:
        """Answers `prompt` about `frames`, uint8 [H, W, 3] each, of edges that are multiples of 28.

        Raises:
          Failed: no answer to this request.
          ConfigError: no request can succeed, such as a wrong key or model.
        """

    def stop(self) -> None:
        """Gives up waiting for another try, in whatever thread."""
