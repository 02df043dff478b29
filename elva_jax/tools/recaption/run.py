"""Runs an engine over a plan: many requests in flight, one writer."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from elva_jax.data.readers.paths import check_some_exist
from elva_jax.errors import ConfigError, ElvaError, VideoError
from elva_jax.tools.progress import record_bar
from elva_jax.tools.recaption import filters, media
from elva_jax.tools.recaption.engine import Engine
from elva_jax.tools.recaption.manifest import Item
from elva_jax.tools.recaption.output import Journal, llava
from elva_jax.tools.recaption.plan import Plan
from elva_jax.tools.recaption.prompts import prompt
from elva_jax.utils.chat_client import Failed, Reply
from elva_jax.utils.timeout import TimeLimitExceeded, run_with_time_limit

TIME_LIMIT = 120.0  # seconds for reading a medium
MISSING = "missing"  # reason of a medium whose file is not there, which it may be at the next start
FIRST = 100  # items of which one must be there
FAILURES_IN_A_ROW = 20  # after which the engine counts as down


def rejected_path(out: Path) -> Path:
    """The journal of the items without a caption, with the reasons."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


@dataclasses.dataclass
class Run:
    """The journals and counts of a run."""

    captions: Journal
    rejected: Journal
    new_captions: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)  # of rejections
    failed: int = 0  # requests that the next start sends again
    prompt_tokens: int = 0
    new_tokens: int = 0

    def record(self, item: Item, outcome: Reply | VideoError | Failed) -> None:
        """Writes the outcome for one item."""
        if isinstance(outcome, VideoError) and item.path is not None and not item.path.exists():
            self.reject(item, MISSING, outcome.reason)
        elif isinstance(outcome, VideoError):
            self.reject(item, "unreadable", outcome.reason)
        elif isinstance(outcome, Failed):
            self.failed += 1
            self._write_reason(item, "failed", str(outcome))
        else:
            self.prompt_tokens += outcome.prompt_tokens
            self.new_tokens += outcome.new_tokens
            if reason := filters.reason(outcome):
                self.reject(item, reason, outcome.text)
            else:
                self.captions.append(llava(item, outcome.text))
                self.new_captions += 1

    def reject(self, item: Item, reason: str, detail: str) -> None:
        """Writes that an item gets no caption."""
        self.reasons[reason] += 1
        self._write_reason(item, reason, detail)

    def _write_reason(self, item: Item, reason: str, detail: str) -> None:
        line = {"id": item.id, item.kind: item.medium, "reason": reason, "detail": detail}
        self.rejected.append(line)


def check_media(plan: Plan, media_dir: Path) -> None:
    """Checks that the folder of media is the right one, before anything is written.

    Raises:
      ConfigError: it is no folder, or none of the first items is in it.
    """
    if not media_dir.is_dir():
        raise ConfigError(f"--media-dir {media_dir}: no such folder")
    items = [item for item in plan.items[:FIRST] if item.path is not None]
    check_some_exist(
        [item.path for item in items if item.path is not None],
        f"--media-dir {media_dir}: none of the first {len(items)} media of the manifest is in it,"
        f" such as {items[0].medium if items else None}",
        ConfigError,
    )


def run(
    plan: Plan,
    engine: Engine,
    captions: Journal,
    rejected: Journal,
    *,
    max_frames: int,
    concurrency: int,
    console: Console | None = None,
) -> Run:
    """Describes the remaining items of a plan and writes captions and rejections as they come.

    Raises:
      ElvaError: the engine is misused, or failed many times in a row; written lines stay.
    """
    report = Run(captions, rejected)
    done = finished(captions.lines, rejected.lines)
    for item, first in plan.duplicates:
        if item.id not in done:
            report.reject(item, "duplicate", f"of {first}")
    todo = [item for item in plan.items if item.id not in done]
    failures = 0  # in a row
    with (
        record_bar("", len(todo), console=console) as advance,
        closing(_outcomes(todo, engine, max_frames, concurrency)) as outcomes,
    ):
        for item, outcome in outcomes:
            failures = failures + 1 if isinstance(outcome, Failed) else 0
            report.record(item, outcome)
            advance(1, f"{report.reasons.total()} rejected, {report.failed} failed")
            if failures == FAILURES_IN_A_ROW:
                raise ElvaError(
                    f"{failures} requests in a row failed, the last one with: {outcome}; "
                    "start again when the engine answers"
                )
    return report


def finished(captions: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> set[str]:
    """The ids that need no further request; what failed or was missing is tried again."""
    answered = {line["id"] for line in rejected if line.get("reason") not in ("failed", MISSING)}
    return answered | {line["id"] for line in captions}


def _outcomes(
    items: list[Item], engine: Engine, max_frames: int, concurrency: int
) -> Generator[tuple[Item, Reply | VideoError | Failed]]:
    """Yields the outcome of each item when it is there; holds at most `concurrency` media."""

    def describe(item: Item) -> Reply:
        try:
            frames = run_with_time_limit(TIME_LIMIT, lambda: media.load(item, max_frames))
        except TimeLimitExceeded as error:
            raise VideoError(item.medium, f"{error} to read") from None
        sampled = item.kind == "video" and len(frames) == max_frames
        return engine.describe(item.kind, frames, prompt(item, sampled=sampled))

    waiting = iter(items)
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        running = {
            pool.submit(describe, item): item for item in itertools.islice(waiting, concurrency)
        }
        try:
            while running:
                done, _ = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    item = running.pop(future)
                    try:
                        outcome: Reply | VideoError | Failed = future.result()
                    except (VideoError, Failed) as error:
                        outcome = error
                    yield item, outcome
                    if (following := next(waiting, None)) is not None:
                        running[pool.submit(describe, following)] = following
        finally:  # after an error or an interruption no thread may wait for another try
            engine.stop()
