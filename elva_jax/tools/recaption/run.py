"""A manifest to captions: what is left to do, many requests under way, one writer."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from elva_jax.errors import ElvaError, VideoError
from elva_jax.tools.recaption import filters, media
from elva_jax.tools.recaption.engine import Engine, Failed, Reply
from elva_jax.tools.recaption.manifest import Item
from elva_jax.tools.recaption.output import Journal, llava
from elva_jax.tools.recaption.plan import Plan
from elva_jax.tools.recaption.prompts import prompt
from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit

TIME_LIMIT = 120.0  # seconds that reading a medium may take
FAILURES_IN_A_ROW = 20  # after which the engine is taken to be down


@dataclasses.dataclass
class Report:
    """What a run did."""

    captions: int = 0
    rejected: Counter = dataclasses.field(default_factory=Counter)  # by reason
    failed: int = 0  # to be asked again at the next start
    prompt_tokens: int = 0
    new_tokens: int = 0


def rejected_path(out: Path) -> Path:
    """Where the items without a caption are listed with the reasons."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


def run(
    plan: Plan,
    engine: Engine,
    captions: Journal,
    rejected: Journal,
    *,
    max_frames: int,
    concurrency: int,
    console: Console | None = None,
) -> Report:
    """Describes what is left of a plan and writes captions and rejections line by line.

    Raises:
      ElvaError: the engine is misused, or failed many times in a row; what was written stays.
    """
    report = Report()
    done = finished(captions.lines, rejected.lines)
    for item, first in plan.duplicates:
        if item.id not in done:
            _reject(rejected, report, item, "duplicate", f"of {first}")
    todo = [item for item in plan.items if item.id not in done]
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    in_a_row = 0
    with (
        Progress(*columns, console=console) as bars,
        closing(_outcomes(todo, engine, max_frames, concurrency)) as outcomes,
    ):
        bar = bars.add_task("", total=len(todo))
        for item, outcome in outcomes:
            in_a_row = in_a_row + 1 if isinstance(outcome, Failed) else 0
            _record(item, outcome, captions, rejected, report)
            bars.update(
                bar,
                advance=1,
                description=f"{report.rejected.total()} rejected, {report.failed} failed",
            )
            if in_a_row == FAILURES_IN_A_ROW:
                raise ElvaError(
                    f"{in_a_row} requests in a row failed, the last one with: {outcome}; start again when the engine answers"
                )
    return report


def finished(captions: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> set[str]:
    """The ids that need no further request; those of failed requests do."""
    return {line["id"] for line in captions} | {
        line["id"] for line in rejected if line.get("reason") != "failed"
    }


def _outcomes(
    items: list[Item], engine: Engine, max_frames: int, concurrency: int
) -> Iterator[tuple[Item, Reply | VideoError | Failed]]:
    """Yields what becomes of each item as it comes, with at most `concurrency` media in memory."""

    def work(item: Item) -> Reply:
        try:
            frames = run_with_time_limit(TIME_LIMIT, lambda: media.load(item, max_frames))
        except TimeLimitExceeded as error:
            raise VideoError(item.medium, f"{error} to read") from None
        return engine.describe(
            item.kind,
            frames,
            prompt(item, sampled=item.kind == "video" and len(frames) == max_frames),
        )

    waiting = iter(items)
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        under_way = {
            pool.submit(work, item): item for item in itertools.islice(waiting, concurrency)
        }
        try:
            while under_way:
                ready, _ = concurrent.futures.wait(
                    under_way, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ready:
                    item = under_way.pop(future)
                    try:
                        outcome = future.result()
                    except (VideoError, Failed) as error:
                        outcome = error
                    yield item, outcome
                    if (following := next(waiting, None)) is not None:
                        under_way[pool.submit(work, following)] = following
        finally:  # an error, or an interruption: let no thread wait for another try
            engine.stop()


def _record(
    item: Item,
    outcome: Reply | VideoError | Failed,
    captions: Journal,
    rejected: Journal,
    report: Report,
) -> None:
    if isinstance(outcome, VideoError):
        _reject(rejected, report, item, "unreadable", outcome.reason)
    elif isinstance(outcome, Failed):
        report.failed += 1
        rejected.append(
            {"id": item.id, item.kind: item.medium, "reason": "failed", "detail": str(outcome)}
        )
    else:
        report.prompt_tokens += outcome.prompt_tokens
        report.new_tokens += outcome.new_tokens
        if reason := filters.reason(outcome):
            _reject(rejected, report, item, reason, outcome.text)
        else:
            captions.append(llava(item, outcome.text))
            report.captions += 1


def _reject(rejected: Journal, report: Report, item: Item, reason: str, detail: str) -> None:
    report.rejected[reason] += 1
    rejected.append({"id": item.id, item.kind: item.medium, "reason": reason, "detail": detail})
