"""Asks a judge about open answers, and makes grades of its verdicts.

    grades ─requests→ (task, texts) ─cache, or the endpoint→ replies ─parse_reply→ verdicts → grades

A reply that cannot be read, or none, leaves its answer "unjudged": counted, in the denominator of
the accuracy, and without points. Failures are not cached, so the next run asks again.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks.base import Benchmark, Evaluation, Grade, scored
from elva_jax.evaluation.judge import protocols
from elva_jax.evaluation.judge.cache import ReplyCache
from elva_jax.evaluation.judge.config import JudgeConfig
from elva_jax.evaluation.judge.prompts import PROMPT_VERSION, messages
from elva_jax.evaluation.judge.protocols import Request
from elva_jax.evaluation.judge.replies import Verdict, parse_reply
from elva_jax.utils.chat_client import ChatClient, Failed

Progress = Callable[[int, int], None]  # (verdicts so far, verdicts in all)
REPLY_TOKENS = 64
REPLY_TRIES = 2  # of a request whose reply cannot be read
FAILURES_IN_A_ROW = 20  # requests without an answer, after which the rest is not sent
MOST_REASONS = 20  # of failures that stand beside a score
PROBE = Request(
    task="qa",
    texts={"question": "What color is it?", "references": ["red"], "answer": "It is red."},
    targets=(),
)


class Judge:
    """A judge over an OpenAI-compatible endpoint.

    Args:
      config: how it is reached.

    Raises:
      ConfigError: the address is none, or the cache cannot be written.
    """

    def __init__(self, config: JudgeConfig):
        self._config = config
        self._client = ChatClient(
            config.endpoint,
            config.model,
            api_key=os.environ.get("OPENAI_API_KEY", ""),
            max_new_tokens=REPLY_TOKENS,
            retry=config.retry,
            options=("--judge", "--judge-model"),
        )
        self._cache = ReplyCache(None if config.cache is None else Path(config.cache))
        self._lock, self._failed, self._given_up = threading.Lock(), 0, ""
        self.failures: Counter[str] = Counter()  # reasons of the answers that it did not judge

    def check(self) -> None:
        """Asks a question whose verdict is clear, before any work depends on the judge.

        Raises:
          ConfigError: it does not answer, or not with a verdict.
        """
        try:
            reply = self._client.complete(messages(PROBE.task, PROBE.texts)).text
        except Failed as error:
            raise ConfigError(f"--judge: {error}; check the address, or judge later") from None
        verdict = parse_reply(reply, with_verdict=True)
        if verdict.failure:
            raise ConfigError(f"--judge-model: {verdict.failure}; choose a model that follows form")

    def describe(self) -> dict[str, Any]:
        """The facts that stand beside a judged score."""
        address = urlsplit(self._config.endpoint)
        host = f"{address.hostname}:{address.port}" if address.port else str(address.hostname)
        return {"judge": self._config.model, "judge_host": host, "judge_prompt": PROMPT_VERSION}

    def grade(
        self, protocol: str, grades: Sequence[Grade], progress: Progress | None = None
    ) -> tuple[Grade, ...]:
        """The same grades as the judge gives them.

        Args:
          protocol: "qa" or "video_chatgpt".
          grades: of one benchmark; questions with options or without a reference stay as they are.
          progress: called after each verdict.
        """
        requests = protocols.requests(protocol, grades)
        verdicts = self._ask(requests, progress or (lambda *_: None))
        for verdict in verdicts:
            if verdict.failure:
                self.failures[verdict.failure] += 1
        return protocols.graded(protocol, grades, requests, verdicts)

    def _ask(self, requests: Sequence[Request], progress: Progress) -> list[Verdict]:
        """The verdicts on some requests; equal ones are sent once."""
        by_content: dict[str, Request] = {request.content: request for request in requests}
        found: dict[str, Verdict] = {}
        pool = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="judge")
        try:
            verdicts = pool.map(self._verdict, by_content.values())
            for content, verdict in zip(by_content, verdicts, strict=True):
                found[content] = verdict
                progress(len(found), len(by_content))
        except BaseException:
            self._client.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return [found[request.content] for request in requests]

    def _verdict(self, request: Request) -> Verdict:
        asked = {
            "model": self._config.model,
            "prompt": PROMPT_VERSION,
            "task": request.task,
            "texts": request.texts,
        }
        with_verdict = request.task == "qa"
        if (cached := self._cache.get(asked)) is not None:
            verdict = parse_reply(cached, with_verdict=with_verdict)
            if not verdict.failure:
                return verdict
        verdict = Verdict(failure="it was not asked")
        for _ in range(REPLY_TRIES):
            try:
                reply = self._send(request)
            except Failed as error:
                return Verdict(failure=str(error))
            verdict = parse_reply(reply, with_verdict=with_verdict)
            if not verdict.failure:
                self._cache.put(asked, reply)
                break
        return verdict

    def _send(self, request: Request) -> str:
        """The reply of the endpoint.

        Raises:
          Failed: there is none, or too many requests in a row had none.
        """
        if self._given_up:
            raise Failed(self._given_up)
        try:
            reply = self._client.complete(messages(request.task, request.texts)).text
        except (Failed, ConfigError) as error:
            with self._lock:
                self._failed += 1
                if self._failed >= FAILURES_IN_A_ROW or isinstance(error, ConfigError):
                    self._given_up = self._given_up or f"the judge was given up after: {error}"
            raise Failed(str(error)) from None
        with self._lock:
            self._failed = 0
        return reply


def judged(
    evaluation: Evaluation, benchmark: Benchmark, judge: Judge, progress: Progress | None = None
) -> Evaluation:
    """An evaluation whose written answers a judge has graded; others are returned as they are.

    Args:
      evaluation: of an open-ended benchmark.
      benchmark: its row of the table.
      judge: the judge.
      progress: called after each verdict.
    """
    if not benchmark.judge or "generated" not in evaluation.grades:
        return evaluation
    before = Counter(judge.failures)
    grades = judge.grade(benchmark.judge, evaluation.grades["generated"], progress)
    failures = _commonest(judge.failures - before)
    settings: Mapping[str, Any] = {**evaluation.settings, **judge.describe()}
    if failures:
        settings = {**settings, "judge_failures": failures}
    return dataclasses.replace(
        evaluation,
        grades={**evaluation.grades, "generated": grades},
        scores={**evaluation.scores, "generated": scored(benchmark.score, grades)},
        settings=settings,
    )


def _commonest(failures: Counter[str]) -> dict[str, int]:
    """The commonest reasons, and the number of all others together."""
    named = dict(failures.most_common(MOST_REASONS))
    rest = failures.total() - sum(named.values())
    return {**named, "other reasons": rest} if rest else named
