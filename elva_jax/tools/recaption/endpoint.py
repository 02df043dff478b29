"""The engine for an OpenAI-compatible endpoint such as vLLM's."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from elva_jax.tools.recaption.engine import Kind
from elva_jax.utils.chat_client import ChatClient, Reply, Retry

JPEG_QUALITY = 92


class Endpoint:
    """Sends the image, or the frames, as JPEG data URLs to a `ChatClient`.

    Args:
      url: address including the version, such as http://localhost:8000/v1.
      model: the name under which the server knows the model.
      api_key: sent as a bearer token; "" for none.
      max_new_tokens: longest answer.
      retry: how long and how often a request is tried.
      frames_as: how a video is sent: "images", which every server accepts, or "video", vLLM's form
        of one video, which takes half as many tokens.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str = "",
        max_new_tokens: int = 1024,
        retry: Retry | None = None,
        frames_as: Literal["images", "video"] = "images",
    ):
        self._client = ChatClient(
            url, model, api_key=api_key, max_new_tokens=max_new_tokens, retry=retry
        )
        self._frames_as = frames_as

    def describe(self, kind: Kind, frames: list[np.ndarray], prompt: str) -> Reply:
        """See `Engine.describe`; failures that may pass are tried again."""
        content = [*self._media(kind, frames), {"type": "text", "text": prompt}]
        return self._client.complete([{"role": "user", "content": content}])

    def stop(self) -> None:
        """See `Engine.stop`."""
        self._client.stop()

    def _media(self, kind: Kind, frames: list[np.ndarray]) -> list[dict[str, Any]]:
        encoded = [_jpeg(frame) for frame in frames]
        if kind == "video" and self._frames_as == "video":
            url = f"data:video/jpeg;base64,{','.join(encoded)}"
            return [{"type": "video_url", "video_url": {"url": url}}]
        urls = [f"data:image/jpeg;base64,{frame}" for frame in encoded]
        return [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def _jpeg(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
