"""Media read ahead of the model, in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from elva_jax.data.example import Media
from elva_jax.errors import ConfigError, ElvaError, VideoError
from elva_jax.evaluation.runner.rows import Group
from elva_jax.inference.prompts import PromptReader
from elva_jax.utils.failures import repr_path
from elva_jax.video.clip import Visual
from elva_jax.video.hybrid import Hybrid

MOST_WORKERS = 16
Read = tuple[Visual, ...] | str  # the media of a group, or why they cannot be read


def read_ahead(
    model: PromptReader,
    groups: Iterable[Group],
    frames: int | Hybrid | None,
    *,
    window: int,
    workers: int | None = None,
) -> Generator[tuple[Group, Read]]:
    """The groups in order with their media, while the next ones are being read.

    Args:
      model: reads media.
      groups: the groups.
      frames: how videos are sampled that do not say it themselves.
      window: most groups whose media are in memory.
      workers: threads; None: one per core, at most MOST_WORKERS.
    """
    workers = workers or min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    pending: deque[tuple[Group, Future[Read]]] = deque()
    try:
        for group in groups:
            pending.append((group, pool.submit(read_group, model, group, frames)))
            if len(pending) > window:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_group(model: PromptReader, group: Group, frames: int | Hybrid | None) -> Read:
    """Reads the media of a group.

    Returns the name of the first one that cannot be read and the reason, where there is one.
    """
    visuals = []
    for number, medium in enumerate(group.media, start=1):
        name = _name(medium, number)
        try:
            visuals.append(read_medium(model, medium, frames, name))
        except VideoError as error:
            return str(error)
        except (ConfigError, MemoryError):
            raise
        except ElvaError as error:
            return f"{name}: {error}"
        except Exception as error:  # decoders may raise any type
            return f"{name}: {type(error).__name__}: {error}"[:300]
    return tuple(visuals)


def read_medium(
    model: PromptReader, medium: Media, frames: int | Hybrid | None, name: str
) -> Visual:
    """Reads a video or image of a question; a number of frames of its own takes precedence.

    Raises:
      VideoError: it cannot be read.
    """
    chosen = 1 if medium.kind == "image" else medium.frames or frames
    return model.read_media(medium.source, frames=chosen, name=name, span=medium.span)


def _name(medium: Media, number: int) -> str:
    source = medium.source
    if isinstance(source, bytes):
        return f"medium {number}"
    return repr_path(source if isinstance(source, str) else next(iter(source), "no frames"))
