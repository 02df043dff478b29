"""The judge of open answers, reached by the variables of lmms-eval."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from elva_jax.evaluation.judge.config import JudgeConfig
from elva_jax.evaluation.judge.judge import Judge
from elva_jax.utils.chat_client import Retry

ADDRESS = "https://api.openai.com/v1/chat/completions"  # lmms-eval's defaults
MODEL = "gpt-4o-2024-11-20"
RETRY = Retry(timeout=60.0, tries=4, total=300.0)


def judge_of(environ: Mapping[str, str], retry: Retry = RETRY) -> Judge | None:
    """The judge of OPENAI_API_URL, OPENAI_API_KEY and MODEL_VERSION; None without the first two.

    Raises:
      ConfigError: the address is none.
    """
    address = environ.get("OPENAI_API_URL", "")
    if not (address or environ.get("OPENAI_API_KEY")) or environ.get("API_TYPE") not in (
        None,
        "openai",
    ):
        return None
    endpoint = (address or ADDRESS).rstrip("/").removesuffix("/chat/completions")
    model = environ.get("MODEL_VERSION", MODEL)
    # lmms-eval scores in threads of its own, an answer each.
    return Judge(JudgeConfig(endpoint=endpoint, model=model, concurrency=1, retry=retry))


@functools.cache
def configured() -> Judge | None:
    """The judge of this process."""
    return judge_of(os.environ)
