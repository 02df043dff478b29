"""Questions in the order of the requests in, replies in the same order out.

    windows of a few batches: task code → items → `inference.batches` → replies in order

A window is what a killed run loses at most: every reply is handed over as soon as all before it
are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from elva_jax.errors import DataError
from elva_jax.evaluation.lmms.requests import Ask, guarded
from elva_jax.inference.batches import queries
from elva_jax.inference.batches.dialogue import dialogue_parts
from elva_jax.inference.batches.queries import Group, Item, Query, Scoring, Writing
from elva_jax.inference.batches.rows import MOST_QUERIES
from elva_jax.inference.batches.schedule import Scheduler
from elva_jax.inference.batching import split_prompt
from elva_jax.inference.prefilled import Answer
from elva_jax.inference.prompts import PromptReader
from elva_jax.inference.scoring import Likelihood
from elva_jax.video.clip import Visual

WINDOW = 4  # batches whose questions are sorted by length
SKIPPED = "nobody waits for it"
OPTION = "option"  # name of the scoring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One request.

    Attributes:
      name: in messages.
      make: runs the task's code, and returns the question.
      writing: how the answer is written; None: an option is scored.
      option: the option's text.
      greedy: whether to find out if the option is what the model would write.
      skipped: whether nobody waits for the reply.
    """

    name: str
    make: Callable[[], Ask]
    writing: Writing | None = None
    option: str = ""
    greedy: bool = False
    skipped: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """The model's reply to one question.

    Attributes:
      text: the written answer.
      input_tokens: length of the prompt before merging.
      output_tokens: length of the answer.
      likelihood: of the option, where it was asked for.
      greedy: whether the model would write the option, where that was asked for.
      refused: why there is no answer; "": there is one.
    """

    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    likelihood: Likelihood | None = None
    greedy: bool = False
    refused: str = ""


class Pipeline:
    """Asks a model the questions of requests.

    Args:
      scheduler: asks the model.
      batch: most questions that are asked together.

    Attributes:
      refused: name of the request and reason, for every question that could not be asked.
    """

    def __init__(self, scheduler: Scheduler, batch: int) -> None:
        self._scheduler, self._batch = scheduler, batch
        self.refused: list[tuple[str, str]] = []

    @property
    def window(self) -> int:
        """Number of requests that are sorted together."""
        return WINDOW * self._batch

    def run(self, jobs: Sequence[Job]) -> Iterator[Reply]:
        """The replies in order; the media of the next window are read meanwhile."""
        done: dict[int, Reply] = {}
        given = 0
        for replies in self._scheduler.run(self._windows(jobs), ahead=self.window):
            for reply in replies:
                index = reply.tag
                done[index] = self._reply(jobs[index], reply)
            while given in done:
                yield done.pop(given)
                given += 1

    def _windows(self, jobs: Sequence[Job]) -> Iterator[list[Group]]:
        """Runs the task code of a window when its first group is wanted."""
        model = self._scheduler.model
        for start in range(0, len(jobs), self.window):
            window = enumerate(jobs[start : start + self.window], start)
            items = (item_of(model, index, job) for index, job in window)
            yield queries.group_by_media(items, MOST_QUERIES)

    def _reply(self, job: Job, found: queries.Reply) -> Reply:
        if found.error:
            if not job.skipped:
                self.refused.append((job.name, found.error))
            return Reply(refused=found.error)
        answer, options = found.answer, found.likelihoods.get(OPTION, ())
        if answer is not None and not options:
            text, tokens = answer.text, len(answer.tokens)
            return Reply(text=text, input_tokens=found.tokens[0], output_tokens=tokens)
        return Reply(
            input_tokens=found.tokens[0],
            output_tokens=options[0].tokens,
            likelihood=options[0],
            greedy=answer is not None and writes(answer, self._option(job)),
        )

    def _option(self, job: Job) -> tuple[int, ...]:
        return self._scheduler.model.answer_ids(job.option)


def item_of(model: PromptReader, index: int, job: Job) -> Item:
    """The item of a job, whose number is its tag; runs the task's code."""
    ask = Ask(refused=SKIPPED) if job.skipped else guarded(job.make)

    def make(visuals: tuple[Visual, ...]) -> Query:
        if ask.refused:
            raise DataError(ask.refused)
        return query_of(model, index, ask, visuals, job)

    return Item(tag=index, name=job.name, media=ask.media, make=make)


def query_of(
    model: PromptReader, index: int, ask: Ask, visuals: Sequence[Visual], job: Job
) -> Query:
    """Renders a conversation up to its last answer.

    Raises:
      DataError: an empty answer of an earlier turn, or markers that do not match the media.
      LayoutError: the prompt ends with a medium, or is too long.
    """
    parts = dialogue_parts(model, ask.turns, visuals, ask.system)
    if job.writing:
        return queries.make_query(model.model_config, index, parts, job.writing)
    option = model.answer_ids(job.option)
    question = split_prompt(parts).question
    return queries.make_query(
        model.model_config,
        index,
        parts,
        Writing(max_new_tokens=len(option)) if job.greedy else None,
        {OPTION: Scoring(question=question, options=(option,))},
    )


def writes(answer: Answer, option: tuple[int, ...]) -> bool:
    """Whether an answer of at most the option's length and its end is the option."""
    return (*answer.tokens, option[-1]) == option
