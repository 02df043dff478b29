"""How a judge is reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from elva_jax.errors import ConfigError
from elva_jax.utils import numbers
from elva_jax.utils.chat_client import Retry


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge of open answers. Its key is the environment's OPENAI_API_KEY and stands nowhere else.

    Attributes:
      endpoint: address including the version, such as http://localhost:8000/v1.
      model: the name under which the server knows the model.
      cache: folder of replies, which several runs may share; None: replies are not kept.
      concurrency: most requests at a time.
      retry: how long and how often a request is tried.

    Example:
      >>> import elva_jax
      >>> elva_jax.JudgeConfig(endpoint="http://localhost:8000/v1", model="qwen").concurrency
      16
    """

    endpoint: str
    model: str
    cache: str | Path | None = None
    concurrency: int = 16
    retry: Retry = field(default_factory=lambda: Retry(timeout=120.0, tries=6, total=600.0))

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        numbers.WORKERS.check("concurrency", self.concurrency)
        if not self.model.strip():
            raise ConfigError("--judge-model: give the name under which the server knows the model")
