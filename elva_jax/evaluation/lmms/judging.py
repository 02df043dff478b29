"""A judge of open answers, configured by the variables of lmms-eval."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx

TRIES = 3
PAUSE = 2.0  # seconds after the first failed try; doubled after each further one
TIMEOUT = 60.0
MOST_BYTES = 1 << 20
DEFAULT_URL = "https://api.openai.com/v1/chat/completions"
DEFAULT_MODEL = "gpt-4o-2024-11-20"
PROMPT = """\
Someone watched a video and answered a question about it. Decide whether the answer means the same \
as the reference answer; other words for the same thing are right.

Question: {question}
Reference answer: {reference}
Answer: {answer}

Reply with one JSON object and nothing else: {{"pred": "yes" or "no", "score": a whole number from \
0 (unrelated) to 5 (the same)}}"""
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Where the judge is asked."""

    url: str
    key: str
    model: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge says of one answer."""

    right: bool
    score: float


def configured(environ: Mapping[str, str] = os.environ) -> Judge | None:
    """The judge of OPENAI_API_URL, OPENAI_API_KEY and MODEL_VERSION; None without the first two."""
    url, key = environ.get("OPENAI_API_URL", ""), environ.get("OPENAI_API_KEY", "")
    if not (url or key) or environ.get("API_TYPE", "openai") != "openai":
        return None
    return Judge(url or DEFAULT_URL, key, environ.get("MODEL_VERSION", DEFAULT_MODEL))


def ask(
    judge: Judge, question: str, reference: str, answer: str, *, pause: float = PAUSE
) -> Verdict | None:
    """The verdict on one answer; None, with a notice, where the judge fails.

    lmms-eval tries a task's scoring five times after an exception and then ends the run, so none is
    raised. An empty answer is wrong without asking.
    """
    if not answer.strip():
        return Verdict(right=False, score=0.0)
    content = PROMPT.format(question=question, reference=reference, answer=answer)
    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(pause * 2 ** (number - 1))
        try:
            return read_verdict(_post(judge, content))
        except (httpx.HTTPError, ValueError) as error:
            problem = str(error) or type(error).__name__
    _LOG.warning("the judge did not answer: %s", problem[:200])
    return None


def _post(judge: Judge, content: str) -> str:
    """The text of the judge's reply.

    Raises:
      httpx.HTTPError: no connection, or an error status.
      ValueError: a reply in another form.
    """
    body = {
        "model": judge.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 64,
    }
    headers = {"Authorization": f"Bearer {judge.key}"} if judge.key else {}
    with httpx.stream("POST", judge.url, json=body, headers=headers, timeout=TIMEOUT) as response:
        response.raise_for_status()
        received = b""
        for part in response.iter_bytes():
            received += part
            if len(received) > MOST_BYTES:
                raise ValueError("the reply is longer than 1 MiB")
    reply: Any = json.loads(received)
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("the reply has no choices[0].message.content") from None
    if not isinstance(text, str):
        raise ValueError("the reply's content is no text")
    return text


def read_verdict(text: str) -> Verdict:
    """Reads the only object in a reply, in JSON or as a Python literal.

    Raises:
      ValueError: there is none, or its values are not yes or no and a number from 0 to 5.
    """
    found = re.findall(r"\{[^{}]{0,200}\}", text[:4000])
    if len(found) != 1:
        raise ValueError(f"{text[:80]!r} has {len(found)} objects instead of one")
    try:
        value = ast.literal_eval(found[0])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{found[0]!r} is neither JSON nor a Python literal") from None
    said = value.get("pred") if isinstance(value, dict) else None
    score = _score(value.get("score")) if isinstance(value, dict) else None
    if said not in ("yes", "no") or score is None:
        raise ValueError(f"{found[0]!r} is not a yes or no and a score from 0 to 5")
    return Verdict(right=said == "yes", score=score)


def _score(value: Any) -> float | None:
    """A number from 0 to 5, or its text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-5](\.[0-9]+)?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 5:
        return None
    return float(value)
