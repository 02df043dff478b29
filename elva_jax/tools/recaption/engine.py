"""The interface of captioning engines: frames and a prompt in, an answer out."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from elva_jax.utils.chat_client import Reply

Kind = Literal["image", "video"]


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
