"""The three kinds of requests of lmms-eval, answered by an ELVA; without an import of lmms-eval."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from elva_jax.evaluation.lmms.generation import read_generation
from elva_jax.evaluation.lmms.media import Medium, Pictures, frames_of
from elva_jax.evaluation.lmms.opened import Opened
from elva_jax.evaluation.lmms.options import Options
from elva_jax.evaluation.lmms.pipeline import Job, Pipeline, Reply
from elva_jax.evaluation.lmms.requests import chat_ask, simple_ask
from elva_jax.evaluation.lmms.rounds import Rounds, chat_rounds, simple_rounds
from elva_jax.inference.batches.queries import Writing
from elva_jax.inference.batches.schedule import Scheduler
from elva_jax.video.clip import Visual

Docs = Mapping[str, Any]  # by task, then split: its documents
SHOWN_REFUSALS = 5
_LOG = logging.getLogger(__name__)


class Adapter:
    """Answers the requests of one rank.

    Args:
      opened: the model.
      options: how to ask.
      docs: the documents of the tasks, which the harness fills in later.
      chat: whether requests have the form of the chat interface.

    Attributes:
      refused: number of questions that could not be asked.
    """

    def __init__(self, opened: Opened, options: Options, docs: Docs, *, chat: bool) -> None:
        self.opened, self.options = opened, options
        self._docs, self._chat = docs, chat
        self._frames = opened.model.hybrid(**options.hybrid) or options.frames
        self._scheduler = Scheduler(
            opened.model, self._read, batch_size=options.batch, merging=options.merging
        )
        self._noted: set[str] = set()
        self.refused = 0

    def write(self, requests: Sequence[Any]) -> Iterator[Reply]:
        """Written answers in order."""
        pipeline, seeds = self._pipeline(), _Repeats()
        jobs = []
        for request in requests:
            make, given = self._question(request)
            writing = self._writing(given, seeds.number(request))
            jobs.append(Job(make=make, writing=writing, **_common(request)))
        yield from self._counted(pipeline, pipeline.run(jobs))

    def score(self, requests: Sequence[Any]) -> Iterator[Reply]:
        """The likelihood of the option of each request, in order."""
        pipeline = self._pipeline()
        jobs = [self._scoring(request) for request in requests]
        yield from self._counted(pipeline, pipeline.run(jobs))

    def converse(self, requests: Sequence[Any]) -> Iterator[Rounds]:
        """The answers of all rounds of each request, in order."""
        pipeline, seeds = self._pipeline(), _Repeats()
        begin = chat_rounds if self._chat else simple_rounds

        def replies() -> Iterator[Rounds]:
            for start in range(0, len(requests), pipeline.window):
                open_rounds = []
                for request in requests[start : start + pipeline.window]:
                    given = next(arg for arg in request.args if isinstance(arg, Mapping))
                    writing = self._writing(given, seeds.number(request))
                    open_rounds.append(
                        begin(request, self._doc(request), writing, **_common(request))
                    )
                while alive := [each for each in open_rounds if each.job is not None]:
                    answers = pipeline.run([each.job for each in alive if each.job is not None])
                    for each, reply in zip(alive, list(answers), strict=True):
                        each.add(reply)
                yield from open_rounds

        yield from self._counted(pipeline, replies())

    def loss(self, reply: Reply) -> float:
        """The loss of an option: lower is better; infinite where it could not be asked."""
        if reply.likelihood is None:
            return float("inf")
        mean = self.options.likelihood == "mean"
        return -(reply.likelihood.mean if mean else reply.likelihood.total)

    def _pipeline(self) -> Pipeline:
        return Pipeline(self._scheduler, self.options.batch)

    def _read(self, medium: Medium, name: str) -> Visual:
        model = self.opened.model
        if isinstance(medium, Pictures):
            return model.read_media(frames_of(medium), frames=self._frames, name=name)
        return model.read_media(medium.source, frames=self._frames, name=name, span=medium.span)

    def _doc(self, request: Any) -> Any:
        doc_id, task, split = request.args[-3:]
        return self._docs[task][split][doc_id]

    def _question(self, request: Any) -> tuple[Callable[[], Any], Mapping[str, Any]]:
        """A function that makes the question of a request, and its generation_kwargs."""
        if self._chat:
            _, messages, given, *_ = request.args
            return lambda: chat_ask(messages(self._doc(request))), given
        context, given, visuals, *_ = request.args
        return lambda: simple_ask(context, visuals(self._doc(request))), given

    def _scoring(self, request: Any) -> Job:
        if len(request.args) == 2:  # an option without a question, for mutual information
            context, option = request.args
            return Job(make=lambda: simple_ask(context, None), option=option, **_common(request))
        context, option, visuals, *_ = request.args
        by_itself = not isinstance(option, str)
        if by_itself:
            option = str(option(self._doc(request)))
        return Job(
            make=lambda: simple_ask(context, visuals(self._doc(request))),
            option=option,
            greedy=by_itself,
            **_common(request),
        )

    def _writing(self, given: Mapping[str, Any], repeat: int) -> Writing:
        writing, ignored = read_generation(
            given, max_new_tokens=self.options.max_new_tokens, seed=self.options.seed + repeat
        )
        if new := set(ignored) - self._noted:
            self._noted |= new
            _LOG.info("generation_kwargs that do not apply are ignored: %s", ", ".join(sorted(new)))
        return writing

    def _counted(self, pipeline: Pipeline, replies: Iterator[Any]) -> Iterator[Any]:
        """The same replies; says at the end, or where the harness stops, what was refused."""
        try:
            yield from replies
        finally:
            self.refused += len(pipeline.refused)
            if pipeline.refused:
                shown = [f"{name}: {reason}" for name, reason in pipeline.refused[:SHOWN_REFUSALS]]
                more = len(pipeline.refused) - len(shown)
                _LOG.warning(
                    "%d question(s) could not be asked and have the answer '': %s%s",
                    len(pipeline.refused),
                    "; ".join(shown),
                    f"; and {more} more" if more else "",
                )


class _Repeats:
    """Counts how often a request came before, so that repeated draws have seeds of their own."""

    def __init__(self) -> None:
        self._seen: collections.Counter[tuple[Any, ...]] = collections.Counter()

    def number(self, request: Any) -> int:
        """The number of earlier requests that are the same."""
        key = request.metadata.get("task"), request.metadata.get("doc_id"), request.idx
        self._seen[key] += 1
        return self._seen[key] - 1


def _common(request: Any) -> dict[str, Any]:
    """Name of a request, and whether it only fills up a rank that has fewer than others."""
    metadata = request.metadata
    return {
        "name": f"{metadata.get('task')} {metadata.get('doc_id')}",
        "skipped": bool(metadata.get("__padding_only__")),
    }
