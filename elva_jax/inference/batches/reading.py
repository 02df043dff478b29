"""Media read ahead of the model, in threads, each once."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from elva_jax.data.example import Media
from elva_jax.errors import ConfigError, ElvaError, StartError, VideoError, first_line, printable
from elva_jax.inference.batches.queries import Group
from elva_jax.parallel.lockstep import Lockstep, digest
from elva_jax.utils.failures import repr_path
from elva_jax.video.clip import Visual

MOST_WORKERS = 16
Read = Callable[[Any, str], Visual]  # a medium, and its name in messages


def read_ahead(
    groups: Iterable[Group | None], read: Read, *, ahead: int, workers: int | None = None
) -> Generator[tuple[Group | None, tuple[Visual, ...] | str]]:
    """The groups in order with their media, while those of the next ones are being read.

    A medium of several groups that follow one another is read once.

    Args:
      groups: the groups; a None among them ends a window, and is yielded in its place. Groups are
        taken from one window beyond the one that is being yielded.
      read: reads one medium.
      ahead: most groups whose media are in memory.
      workers: threads; None: one per core, at most MOST_WORKERS.

    Yields:
      A group, and its media or else the name of the first one that cannot be read and the reason.
    """
    workers = workers or min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    pending: deque[Group | None] = deque()
    reading: dict[Hashable, Future[Visual | str]] = {}
    users: Counter[Hashable] = Counter()

    def finished() -> tuple[Group | None, tuple[Visual, ...] | str]:
        group = pending.popleft()
        found = [reading[medium].result() for medium in group.media] if group else []
        for medium in group.media if group else ():
            users[medium] -= 1
            if not users[medium]:
                del users[medium], reading[medium]
        failed = next((each for each in found if isinstance(each, str)), None)
        return group, failed or tuple(each for each in found if not isinstance(each, str))

    try:
        for group in groups:
            pending.append(group)
            for medium in group.media if group else ():
                if medium not in reading:
                    name = _name(medium, group.items[0].name) if group else ""
                    reading[medium] = pool.submit(_attempt, read, medium, name)
                users[medium] += 1
            while len(pending) > ahead or pending.count(None) > 1:
                yield finished()
        while pending:
            yield finished()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def same_media(
    lockstep: Lockstep, name: str, found: tuple[Visual, ...] | str
) -> tuple[Visual, ...] | str:
    """Media as they were read, once every process of the mesh has read the same.

    Args:
      lockstep: the processes of the mesh, all of which must call this.
      name: what the media are of, in messages.
      found: the media, or why they could not be read; then it is what the first process says.

    Raises:
      StartError: a process could not read what others could, or read something else.
    """
    if lockstep.alone:
        return found
    own: dict[str, Any]
    if isinstance(found, str):
        own = {"error": found}
    else:
        own = {"digest": digest([visual.patches for visual in found])}
    outcomes = lockstep.exchange(own)
    errors = [outcome["error"] for outcome in outcomes if "error" in outcome]
    if len(errors) == len(outcomes):
        return str(errors[0])
    if errors:
        raise StartError(f"{errors[0]}; another process of the mesh could read it: check its disk")
    if any(outcome != own for outcome in outcomes):
        raise StartError(
            f"{name}: the processes of the mesh read different media; give every host the same"
            " files"
        )
    return found


def _attempt(read: Read, medium: Hashable, name: str) -> Visual | str:
    """The medium, or its name and why it cannot be read."""
    try:
        return read(medium, name)
    except VideoError as error:
        return str(error)
    except (ConfigError, MemoryError):
        raise
    except ElvaError as error:
        return f"{name}: {error}"
    except Exception as error:  # decoders may raise any type
        return printable(f"{name}: {type(error).__name__}: {first_line(error)}")[:300]


def _name(medium: Hashable, item: str) -> str:
    source = medium.source if isinstance(medium, Media) else b""
    if isinstance(source, bytes):
        return f"medium of {repr_path(item)}"  # an id may hold any characters
    return repr_path(source if isinstance(source, str) else next(iter(source), "no frames"))
