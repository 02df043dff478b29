"""`answer_file`: the rows of a file, asked of one model by one process or several."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from elva_jax.errors import ConfigError, DataError, RequestError
from elva_jax.inference.batch_file import output as lines
from elva_jax.inference.batch_file.index import QuestionFile
from elva_jax.inference.batches.dialogue import dialogue_parts
from elva_jax.inference.batches.journal import Head
from elva_jax.inference.batches.queries import (
    Group,
    Item,
    Query,
    Reply,
    Writing,
    group_by_media,
    make_query,
)
from elva_jax.inference.batches.rows import MOST_QUERIES
from elva_jax.inference.batches.schedule import Scheduler
from elva_jax.inference.batches.shares import Journals, Work, divide, in_turn, work_through
from elva_jax.inference.chat_completions import error_body
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.request_settings import chosen_merging
from elva_jax.utils import numbers, owner
from elva_jax.video.clip import Visual
from elva_jax.video.hybrid import Hybrid

MOST_REASONS = 5  # that a result has
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileConfig:
    """How the rows of a file are asked.

    Attributes:
      writing: how an answer is written where a row does not say.
      frames: how videos are sampled that do not say it themselves.
      merging: whether the model's merging layers act, or the name of one of its profiles, where a
        row does not say.
      batch_size: most rows that are asked together.
      workers: threads that read media ahead; None: one per core, at most 16.
      shard: (I, N): only part I, from 0, of N.
      model_name: in answers to OpenAI's rows that have none.
      process: (index, count) of this process, where several share the rows through the folder of
        the output.
    """

    writing: Writing = field(default_factory=lambda: Writing(max_new_tokens=64))
    frames: int | Hybrid | None = None
    merging: bool | str = True
    batch_size: int = 32
    workers: int | None = None
    shard: tuple[int, int] = (0, 1)
    model_name: str = "elva"
    process: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        numbers.check_fields(self, {"batch_size": numbers.ROWS, "workers": numbers.WORKERS})


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """The outcome of the rows of a file.

    Attributes:
      rows: their number.
      failed: how many of them could not be asked.
      reasons: why, of the first few.
    """

    rows: int
    failed: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Sampled:
    """A medium with the sizes of its frames, where its row has them."""

    medium: Hashable
    frames: Hybrid


def shard_path(output: Path, shard: tuple[int, int]) -> Path:
    """The output of one shard: answers.jsonl, or answers-00000-of-00008.jsonl."""
    index, count = shard
    if count == 1:
        return output
    return output.with_name(f"{output.stem}-{index:05d}-of-{count:05d}{output.suffix}")


def answer_file(
    model: ElvaModel,
    questions: QuestionFile,
    output: Path,
    identity: Mapping[str, Any],
    config: FileConfig,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> FileResult:
    """Answers the rows of a file, and writes the answers in their order.

    A call with the same arguments continues where the one before ended, however it ended. An answer
    depends neither on the other rows nor on the number of processes or interruptions. Processes
    whose model is on one mesh all call it with the same arguments, and the first one writes.

    Args:
      model: the model; rows may name its merging profiles.
      questions: the rows; they know the names of the profiles.
      output: the file of the answers; its journals are in a folder beside it.
      identity: what answers depend on besides the settings of `config`, such as the weights' hash.
      config: how they are asked.
      progress: called with the number of answered rows and of all, after each batch.

    Raises:
      DataError: journals of another model, input or setting, or damaged ones.
      StartError: another run writes the same output.
    """
    asking = _Asking(model, questions, identity, config)
    groups = asking.groups()
    rows = sorted(item.tag for group in groups for item in group.items)
    folder = lines.journal_folder(output)
    lockstep = model.engine.placement.lockstep
    if lockstep.first:
        folder.mkdir(parents=True, exist_ok=True)
    way_out = f"name another --output, or remove {folder.name} to ask everything again"
    head = Head(fields={"settings": asking.settings()}, of="run", way_out=way_out)
    digests = {str(row): questions.digest(row) for row in range(len(questions))}
    lockstep.agree("the rows", list(digests.values()))
    journals = Journals(folder, head, lines.reader_of(digests, way_out), lockstep)
    index, count = config.process
    shares = in_turn(divide(groups, count, config.batch_size), index, count)

    def ask(groups: Sequence[Group]) -> Iterator[list[dict[str, Any]]]:
        with contextlib.closing(asking.scheduler.run([groups])) as asked:
            for replies in asked:
                yield [asking.record(reply, digests) for reply in replies]

    with contextlib.ExitStack() as stack:
        stack.enter_context(lockstep.together())
        writes = index == 0 and lockstep.first
        if writes:
            stack.enter_context(owner.own(folder, _LOG.info))
        work_through([Work(journals, shares, ask, lambda done: progress(done, len(rows)))])
        found = journals.load()
        places = [found[str(row)] for row in rows]
        if writes:
            lines.merge(output, places)
    failed = [(row, at.error) for row, at in zip(rows, places, strict=True) if at.error]
    reasons = [_reason(questions.place(row), error) for row, error in failed[:MOST_REASONS]]
    return FileResult(rows=len(rows), failed=len(failed), reasons=tuple(reasons))


def _reason(place: str, error: str) -> str:
    """Why a row could not be asked, with its place."""
    return error if error.startswith(place) else f"{place}: {error}"


class _Asking:
    """Rows as items, and replies as records."""

    def __init__(
        self,
        model: ElvaModel,
        questions: QuestionFile,
        identity: Mapping[str, Any],
        config: FileConfig,
    ) -> None:
        self._model, self._questions = model, questions
        self._identity, self._config = identity, config
        self.scheduler = Scheduler(
            model,
            self._read,
            batch_size=config.batch_size,
            merging=chosen_merging(config.merging, model.merging_profiles),
            workers=config.workers,
        )

    def groups(self) -> list[Group]:
        """The rows of this shard, grouped by their media."""
        index, count = self._config.shard
        hybrids = self._hybrids()
        items = [
            Item(
                tag=row,
                name=self._questions.place(row),
                media=tuple(_Sampled(m, hybrids[row]) for m in media) if row in hybrids else media,
                make=partial(self._query, row),
                key=str(row),
            )
            for row, media in enumerate(self._questions.media)
        ]
        return group_by_media(items, MOST_QUERIES)[index::count]

    def settings(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        config, data = self._config, self._model.data
        hybrid = config.frames if isinstance(config.frames, Hybrid) else None
        frames = hybrid.frames if hybrid else config.frames or data.num_frames
        # Journals of a command without profiles stay as they were before there were any.
        profiles = self._model.merging_profiles
        named = {name: asdict(merging) for name, merging in profiles.items()}
        return {
            **self._identity,
            **({"merging_profiles": named} if named else {}),
            "frames": frames,
            "longest_edge": hybrid.high_edge if hybrid else data.longest_edge,
            "hybrid": asdict(hybrid) if hybrid else None,
            "merging": config.merging,
            "shard": "{}/{}".format(*config.shard),
            "max_new_tokens": config.writing.max_new_tokens,
            **asdict(config.writing.sampling),
        }

    def record(self, reply: Reply, digests: Mapping[str, str]) -> dict[str, Any]:
        """The line of a journal for a reply."""
        row = reply.tag
        label = self._questions.label(row, self._config.model_name)
        error = error_body(self._questions.problems.get(row) or DataError(reply.error))
        return lines.record_of(digests[str(row)], label, reply, error)

    def _hybrids(self) -> dict[int, Hybrid]:
        """The sizes of the frames of rows that have them; those that cannot be are problems."""
        found: dict[int, Hybrid] = {}
        for row, fields in self._questions.hybrids.items():
            try:
                hybrid = self._model.hybrid(**fields)
            except ConfigError as error:
                problem = RequestError(next(iter(fields)), str(error))
                self._questions.problems.setdefault(row, problem)
            else:
                assert hybrid is not None
                found[row] = hybrid
        return found

    def _query(self, row: int, visuals: tuple[Visual, ...]) -> Query:
        if problem := self._questions.problems.get(row):
            raise problem
        found = self._questions.read(row)
        said = found.dialogue
        parts = dialogue_parts(self._model, said.turns, visuals, said.system)
        named, profiles = found.merging, self._model.merging_profiles
        merging = None if named is None else chosen_merging(named, profiles)
        return make_query(self._model.model_config, row, parts, found.writing, merging=merging)

    def _read(self, medium: Any, name: str) -> Visual:
        usual: int | Hybrid | None = self._config.frames
        if isinstance(medium, _Sampled):
            medium, usual = medium.medium, medium.frames
        found = self._questions.source(medium)
        frames = 1 if found.kind == "image" else found.frames or usual
        return self._model.read_media(found.source, frames=frames, name=name, span=found.span)
