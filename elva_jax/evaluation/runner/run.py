"""`evaluate_benchmarks`: benchmarks, asked of one model by one process or several."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from elva_jax.checkpoints.restore import Run
from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks.base import Benchmark, Evaluation, Response
from elva_jax.evaluation.judge.judge import Judge, judged
from elva_jax.evaluation.models import Opened, lockstep_for, open_elva
from elva_jax.evaluation.results.intervals import with_intervals
from elva_jax.evaluation.runner.grading import evaluation_of
from elva_jax.evaluation.runner.identity import describe_model, describe_reading, prompts_hash
from elva_jax.evaluation.runner.journal import FOLDER, make_head, reader_of, stale_of, to_record
from elva_jax.evaluation.runner.queries import item_of, reader, response_of
from elva_jax.evaluation.runner.settings import BenchmarkConfig, ways_of
from elva_jax.evaluation.runner.tasks import read_questions, resolve
from elva_jax.inference.batches.queries import Group, group_by_media
from elva_jax.inference.batches.rows import MOST_QUERIES
from elva_jax.inference.batches.schedule import Scheduler
from elva_jax.inference.batches.shares import Journals, Work, divide, in_turn, work_through
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.params import parameter_count
from elva_jax.ops.attention import choose_implementation
from elva_jax.utils import owner
from elva_jax.utils.numbers import shown
from elva_jax.version import __version__

_LOG = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # (benchmark, questions answered, questions in all)


def evaluate_benchmarks(
    model: str | Path | Run | ElvaModel | Opened,
    tasks: Sequence[str | Benchmark],
    data_root: str | Path = ".",
    config: BenchmarkConfig | None = None,
    *,
    output: str | Path | None = None,
    process: tuple[int, int] = (0, 1),
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Asks a model the questions of benchmarks, and scores its answers.

    Questions about media that cannot be read have the status "unreadable" and are in no score; all
    others count. An answer depends neither on `batch_size` nor on the number of processes or
    interruptions.

    Args:
      model: path of a run, a saved step or an exported folder; the model itself; or a model that
        `open_elva` has opened.
      tasks: benchmarks by name; or the benchmarks themselves.
      data_root: the folder with local copies: one folder per benchmark, or that of the only one.
      config: how questions are asked.
      output: folder for the journals of the answers. A call with the same arguments continues
        where the one before ended, however it ended. None: nothing is written.
      process: (index, count) of this process, where several share the questions through `output`
        on a file system that all of them see. Only the first one computes intervals and asks the
        judge.
      mesh: devices over which the weights and every batch are split; None: the first one. Where
        they are those of several processes, these ask every question together: all of them call
        this with the same arguments and a `process` of (0, 1), and the first one alone writes to
        `output`, computes intervals and asks the judge.
      progress: called after each batch, and after each verdict of a judge.

    Returns:
      One evaluation per benchmark. Those without options are left out, with a warning, where
      `config.answers` has only ways that need them.

    Raises:
      ElvaError: no such checkpoint or benchmark, missing or damaged benchmark files, an output
        folder with answers of another model or setting, or one that another run is using.

    Example:
      >>> import elva_jax
      >>> config = elva_jax.BenchmarkConfig(answers=("letter",), limit=100)
      >>> found = elva_jax.evaluate_benchmarks(  # doctest: +SKIP
      ...     "runs/7b", ["videomme"], "data", config, output="scores/7b"
      ... )
    """
    config = config or BenchmarkConfig()
    if process[1] > 1 and output is None:
        raise ConfigError("several processes share their answers in a folder: give output")
    lockstep = lockstep_for(model, mesh)
    if process[1] > 1 and not lockstep.alone:
        raise ConfigError("process: the processes of a mesh ask together; leave it at (0, 1)")
    progress = progress or (lambda *_: None)
    with lockstep.together():
        jobs = _askable([_Job(each, Path(data_root), config) for each in resolve(tasks)])
        lockstep.agree("the questions", [job.described() for job in jobs])
        writes = process[0] == 0 and lockstep.first
        judge = _open_judge(config, jobs) if writes else None
        elva, origin = open_elva(model, mesh, config.weights, config.prefill_chunk)
        runner = _Runner(elva, config, process, progress)
        with contextlib.ExitStack() as stack:
            if output is not None and lockstep.first:
                Path(output).mkdir(parents=True, exist_ok=True)
            if output is not None and writes:
                stack.enter_context(owner.own(Path(output), _LOG.info))
            decides = {"weights_hash": origin["weights_hash"]}
            found = runner.run(jobs, None if output is None else Path(output), decides)
        facts = _facts(elva, origin, config)
        evaluations = [job.grade(of, facts) for job, of in zip(jobs, found, strict=True)]
        if not writes:
            return evaluations
        pairs = zip(evaluations, jobs, strict=True)
        return [_finish(each, job, judge, progress) for each, job in pairs]


def _askable(jobs: Sequence[_Job]) -> list[_Job]:
    """The jobs that can be asked in one of the wanted ways; names the others.

    Raises:
      ConfigError: none can.
    """
    without = [job.benchmark.name for job in jobs if not job.ways]
    if without:
        message = (
            f"answers: {', '.join(without)} has no options whose likelihood could be measured; add"
            " 'generated'"
        )
        if len(without) == len(jobs):
            raise ConfigError(message)
        _LOG.warning("%s. It is left out, and the others are asked", message)
    return [job for job in jobs if job.ways]


def _finish(
    evaluation: Evaluation, job: _Job, judge: Judge | None, progress: Progress
) -> Evaluation:
    """The evaluation as the judge grades it, with intervals."""
    if judge:
        shown = partial(progress, f"{job.benchmark.name} (judge)")
        evaluation = judged(evaluation, job.benchmark, judge, shown)
    return with_intervals(evaluation, job.benchmark.score, tally=job.benchmark.tally)


def _open_judge(config: BenchmarkConfig, jobs: Sequence[_Job]) -> Judge | None:
    """The judge, if there is one and a benchmark needs it; checked before anything is asked.

    Raises:
      ConfigError: it does not answer.
    """
    if config.judge is None:
        return None
    if not any(job.benchmark.judge for job in jobs):
        names = ", ".join(job.benchmark.name for job in jobs)
        _LOG.warning("The judge has nothing to do: no question of %s has an open answer", names)
        return None
    judge = Judge(config.judge)
    judge.check()
    return judge


def unjudged(evaluation: Evaluation) -> dict[str, int]:
    """Why answers could not be judged, with the number of the judge's failures."""
    return dict(evaluation.settings.get("judge_failures", {}))


def unreadable(evaluation: Evaluation, *, fits: bool | None = None) -> dict[str, int]:
    """Why questions could not be asked, with the number of those questions.

    Args:
      evaluation: the questions and what became of them.
      fits: only those whose length the model can take, or only the others; None: all.
    """
    found = [grade.response for grade in next(iter(evaluation.grades.values()), ())]
    wanted = (each for each in found if each.error and fits in (None, each.fits))
    return dict(Counter(map(_reason, wanted)))


def _reason(response: Response) -> str:
    """Why a question could not be asked; names it, if the reason does not name its medium."""
    question, error = response.question, response.error
    if any(isinstance(each.source, str) and each.source in error for each in question.media):
        return error
    return f"question {shown(question.key)}: {error}"


class _Job:
    """One benchmark and its questions."""

    def __init__(self, benchmark: Benchmark, data_root: Path, config: BenchmarkConfig) -> None:
        self.benchmark = benchmark
        self.all_questions = read_questions(benchmark, data_root, follow_links=config.follow_links)
        self.questions = self.all_questions[: config.limit]
        self.ways = ways_of(config, benchmark, self.all_questions)
        self.max_new_tokens = config.max_new_tokens or benchmark.max_new_tokens
        self.settings: Mapping[str, Any] = {}
        self.seconds = 0.0

    def described(self) -> list[Any]:
        """The questions as all processes of a mesh must have them."""
        return [prompts_hash(self.questions), [q.key for q in self.questions if q.problem]]

    def grade(self, responses: Mapping[str, Response], facts: Mapping[str, Any]) -> Evaluation:
        """The evaluation of the responses, by key of the question."""
        in_order = [responses[question.key] for question in self.questions]
        prompts = {"prompts_hash": prompts_hash(self.all_questions)}
        settings = {**self.settings, **prompts, **facts}
        return evaluation_of(self.benchmark, in_order, self.ways, settings, self.seconds)


class _Runner:
    """Asks the questions of jobs."""

    def __init__(
        self,
        model: ElvaModel,
        config: BenchmarkConfig,
        process: tuple[int, int],
        progress: Progress,
    ) -> None:
        self.model, self.config, self.process, self.progress = model, config, process, progress
        self.hybrid = model.hybrid(**config.hybrid)

    def run(
        self, jobs: Sequence[_Job], output: Path | None, weights: Mapping[str, Any]
    ) -> list[dict[str, Response]]:
        """The responses of each job by key of the question."""
        reading = describe_reading(self.model, self.config, self.hybrid)
        described = {**weights, **describe_model(self.model), **reading}
        for job in jobs:
            ways, most = list(job.ways), job.max_new_tokens
            job.settings = described | {"answers": ways, "max_new_tokens": most}
        if output is None:
            return [self._alone(job) for job in jobs]
        return self._with_others(jobs, output)

    def _alone(self, job: _Job) -> dict[str, Response]:
        start = time.monotonic()
        found: dict[str, Response] = {}
        for responses in self._ask(self._groups(job), self._scheduler()):
            found |= {response.question.key: response for response in responses}
            self.progress(job.benchmark.name, len(found), len(job.questions))
        job.seconds = time.monotonic() - start
        return found

    def _groups(self, job: _Job) -> list[Group]:
        items = [item_of(self.model, q, job.ways, job.max_new_tokens) for q in job.questions]
        return group_by_media(items, MOST_QUERIES)

    def _scheduler(self) -> Scheduler:
        config = self.config
        return Scheduler(
            self.model,
            reader(self.model, self.hybrid or config.num_frames),
            batch_size=config.batch_size,
            merging=config.merging,
            workers=config.workers,
        )

    def _with_others(self, jobs: Sequence[_Job], output: Path) -> list[dict[str, Response]]:
        """Asks whatever no living process asks, until everything is answered."""
        works = [self._work(job, output / job.benchmark.name) for job in jobs]
        work_through(works)
        for job, work in zip(jobs, works, strict=True):
            job.seconds = work.seconds
        return [work.journals.load() for work in works]

    def _work(self, job: _Job, folder: Path) -> Work[Response]:
        name, scheduler = job.benchmark.name, self._scheduler()
        journals = Journals(
            folder / FOLDER,
            make_head(name, job.settings),
            reader_of(job.all_questions),
            self.model.engine.placement.lockstep,
            stale_of(job.all_questions),
        )
        shares = divide(self._groups(job), self.process[1], self.config.batch_size)

        def ask(groups: Sequence[Group]) -> Iterator[list[dict[str, Any]]]:
            for responses in self._ask(groups, scheduler):
                yield list(map(to_record, responses))

        def progress(done: int) -> None:
            self.progress(name, done, len(job.questions))

        return Work(journals, in_turn(shares, *self.process), ask, progress)

    @staticmethod
    def _ask(groups: Sequence[Group], scheduler: Scheduler) -> Iterator[Sequence[Response]]:
        """The responses to all questions of some groups, some at a time."""
        with contextlib.closing(scheduler.run([groups])) as asked:
            for replies in asked:
                yield [response_of(reply) for reply in replies]


def _facts(model: ElvaModel, origin: Mapping[str, Any], config: BenchmarkConfig) -> dict[str, Any]:
    """The facts that stand beside a score besides the settings that decide the answers."""
    built = model.model_config
    return {
        **origin,
        "stage": model.stage,
        "parameters": parameter_count(model.engine.weights),
        "limit": config.limit,
        "batch_size": config.batch_size,
        "attention": str(choose_implementation(built.head_dim, built.dtype, built.attention)),
        "device": jax.devices()[0].device_kind,
        "versions": {"elva_jax": __version__, "jax": jax.__version__},
    }
