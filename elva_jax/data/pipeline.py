"""Batches of one process, with an exact position that can be saved as JSON.

    source: shuffle, shard, repeat, mix  ->  decoder  ->  packer  ->  collator
    (mixture)                               (workers)    (rows)      (arrays)

A decoded sample is a function of its position in endless streams (see `iterator_state`). The state
of a `BatchIterator` is therefore the number of samples it has read and the positions of those that
still wait to be packed; it does not depend on the number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import grain
from absl import flags

from elva_jax.config.schema import Config
from elva_jax.config.stage_schema import DataConfig
from elva_jax.data import mixture as mixing
from elva_jax.data.collate import Collator
from elva_jax.data.decode_example import Decoder
from elva_jax.data.iterator_state import (
    RemainingPositions,
    ReshardHistory,
    StreamPosition,
    redistribute,
    saved_positions,
    trace,
)
from elva_jax.data.packing import Packer
from elva_jax.data.safe_read import Rejected, RejectionLog
from elva_jax.data.worker_stream import WorkerStream
from elva_jax.errors import DataError
from elva_jax.utils.seeds import stage_seed
from elva_jax.utils.workers import prepare_worker
from elva_jax.video.counts import Counts

BUFFER_BYTES = 2**28  # limit of the decoded samples that are prefetched
HYBRID = ("num_low_frames", "low_longest_edge", "hybrid_policy", "hybrid_probability")
# Keys of a stage's data that determine the samples and their order.
SAVED_KEYS = (
    "num_frames",
    "fps",
    "longest_edge",
    "upscale",
    "seq_len",
    "max_patches",
    "max_frames",
    "pack",
    "max_turns",
    "system_prompt",
)


class SampleStreams:
    """The decoded records of all endless streams; it can be pickled and sent to workers.

    Args:
      decoder: decodes a record into a sample.
      seed: seed of the run.
      stage_name: name of the stage; every stage has its own order.
      number: number of streams; each has its slice of every source and its own random choices.

    Raises:
      DataError: a source has fewer records than there are streams.
    """

    def __init__(self, decoder: Decoder, seed: int, stage_name: str, number: int):
        self._decoder = decoder
        self._seed = seed
        self._stage_name = stage_name
        self._number = number
        self._opened: dict[int, grain.MapDataset] = {}
        self._open(0)

    def __call__(self, position: StreamPosition) -> Any:
        """The sample at a position, or `Rejected`."""
        if position.stream not in self._opened:
            self._open(position.stream)
        return self._opened[position.stream][position.index]

    def _open(self, stream: int) -> None:
        mixture = self._decoder.mixture
        order = mixing.stream(
            mixture.lengths,
            mixture.shares,
            stage_seed(self._seed, self._stage_name),
            stream,
            self._number,
        )
        self._opened[stream] = order.random_map(
            self._decoder, seed=stage_seed(self._seed, self._stage_name, "turns", stream)
        )


class SampleReader:
    """Reads the samples of one process in order; threads or worker processes prefetch them.

    Args:
      open_streams: opens the streams for a given number of processes.
      process_index: index of this process.
      process_count: number of processes.
      workers: number of decoding processes; 0: a thread of this process decodes.
      buffer: number of prefetched samples.
    """

    def __init__(
        self,
        open_streams: Callable[[int], Callable[[StreamPosition], Any]],
        *,
        process_index: int,
        process_count: int,
        workers: int,
        buffer: int,
    ):
        self.process_index, self.process_count = process_index, process_count
        self.position = 0  # number of new samples read so far
        self.history: ReshardHistory = []
        self.replay: deque[StreamPosition] = deque()  # decoded again before any new sample
        self._open_streams = open_streams
        self._workers, self._buffer = workers, buffer
        self._upstream: grain.DatasetIterator | WorkerStream | None = None

    def read(self) -> tuple[StreamPosition, Any]:
        """Returns the next sample, or `Rejected`, with its position.

        Raises:
          DataError: a sample that was readable when the state was saved can no longer be read.
        """
        sample = self._next()
        if not self.replay:
            index, count = self.process_index, self.process_count
            position = trace(self.history, count, index, self.position)
            self.position += 1
            return position, sample
        if isinstance(sample, Rejected):
            raise DataError(
                f"{sample.key}: could be read when the checkpoint was saved, "
                f"but not now ({sample.reason})"
            )
        return self.replay.popleft(), sample

    def restore(
        self, position: int, history: ReshardHistory, replay: Iterable[StreamPosition]
    ) -> None:
        """Continues with the samples at `replay`, then from a saved position."""
        self.close()
        self.position, self.history, self.replay = position, history, deque(replay)

    def close(self) -> None:
        """Stops the workers; the next `read` starts them again."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def _next(self) -> Any:
        if self._upstream is not None:
            return next(self._upstream)
        self._upstream = self._start()
        return next(self._upstream)

    def _start(self) -> grain.DatasetIterator | WorkerStream:
        index, count = self.process_index, self.process_count
        remaining = RemainingPositions(self.replay, self.history, index, count, self.position)
        first_count = len(self.history[0]) if self.history else count
        stream = grain.MapDataset.source(remaining).map(self._open_streams(first_count))
        if self._workers == 0:
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._buffer)
            return iter(stream.to_iter_dataset(options))
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=max(1, self._buffer // self._workers)
        )
        unbuffered = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        samples = stream.to_iter_dataset(unbuffered)
        return WorkerStream(iter(samples.mp_prefetch(workers, worker_init_fn=prepare_worker)))


class BatchIterator:
    """Endless batches of one process.

    Args:
      reader: yields the samples.
      packer: chooses the samples of each row.
      collator: joins the rows into arrays.
      rows: number of rows per batch.
      max_bad_fraction: fraction of rejected records above which reading stops.
      settings: values that a saved state depends on; a state with other values is rejected.
      examples_per_epoch: number of examples in one epoch, over all processes.

    Attributes:
      examples_per_epoch: as above.
      stats: statistics of the last batch; see the collator.
    """

    def __init__(
        self,
        *,
        reader: SampleReader,
        packer: Packer,
        collator: Collator,
        rows: int,
        max_bad_fraction: float,
        settings: dict[str, Any],
        examples_per_epoch: int,
    ):
        self._reader = reader
        self._packer = packer
        self._collator = collator
        self._rows = rows
        self._rejections = RejectionLog(max_bad_fraction)
        self._settings = settings
        self.examples_per_epoch = examples_per_epoch
        self.stats: dict[str, float] = {}

    @property
    def waiting(self) -> list[Counts]:
        """Counts of the decoded samples that wait to be packed, oldest first."""
        return [counts for _, counts in self._packer.waiting]

    @property
    def seen(self) -> int:
        """Number of records read so far."""
        return self._rejections.seen

    @property
    def dropped(self) -> int:
        """Number of records dropped so far."""
        return self._rejections.dropped

    @property
    def reasons(self) -> dict[str, int]:
        """Number of dropped records by reason."""
        return self._rejections.reasons

    @property
    def fingerprint(self) -> list[Any]:
        """The settings of the mixture that determine the order, as JSON."""
        found: list[Any] = self._settings["mixture"]
        return found

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> dict[str, Any]:
        """Returns the next batch.

        Raises:
          DataError: the fraction of bad records exceeds its limit.
        """
        return self._collator(self.take_rows(self._rows))

    def take_rows(self, number: int) -> list[list[Any]]:
        """Returns the samples of the next rows.

        Raises:
          DataError: the fraction of bad records exceeds its limit.
        """
        rows = []
        for _ in range(number):
            while self._packer.short:
                self._add_sample()
            rows.append([sample for _, sample in self._packer.take()])
        self.stats = self._collator.stats(rows)
        return rows

    def _add_sample(self) -> None:
        """Reads records until one can be used, and adds it to the packer."""
        while True:
            replayed = bool(self._reader.replay)
            position, sample = self._reader.read()
            if not replayed:
                self._rejections.seen += 1
            if not isinstance(sample, Rejected):
                self._packer.add((position, sample), sample.counts)
                return
            self._rejections.add(sample)

    def get_state(self) -> dict[str, Any]:
        """The position of the next batch, as JSON."""
        waiting = [position for (position, _), _ in self._packer.waiting]
        return {
            "position": self._reader.position,
            "waiting": [list(position) for position in (*waiting, *self._reader.replay)],
            "deals": [list(positions) for positions in self._reader.history],
            "seen": self._rejections.seen,
            "reasons": dict(self._rejections.reasons),
            "first": dict(self._rejections.first),
            "settings": self._settings,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from the result of `get_state`; the waiting samples are decoded again.

        Raises:
          DataError: the state belongs to different data, settings or another number of processes
            (in the last case call `resume`).
        """
        for name, value in self._settings.items():
            saved = state["settings"].get(name)
            if saved != value:
                raise DataError(
                    f"data position: {name} was {saved} when it was saved and is {value} now; "
                    "restore it, or start the stage again"
                )
        waiting = saved_positions(state["waiting"], self._reader.process_index)
        self._reader.restore(state["position"], state.get("deals", []), waiting)
        self._rejections.restore(state["seen"], state["reasons"], state["first"])
        self._packer.clear()

    def resume(self, states: Sequence[dict[str, Any]]) -> None:
        """Continues from the states of all processes, in order; their number may have changed.

        Raises:
          DataError: the states belong to different data or settings.
        """
        index, count = self._reader.process_index, self._reader.process_count
        self.set_state(redistribute(states, index, count))

    def close(self) -> None:
        """Stops the workers; the next batch starts them again."""
        self._reader.close()


def make_batches(
    config: Config,
    stage_name: str,
    *,
    decoder: Decoder,
    packer: Packer,
    collator: Collator,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
) -> BatchIterator:
    """This process's share of the batches of a stage: batch_size / process_count rows each.

    Args:
      config: the configuration of the run.
      stage_name: name of the stage.
      decoder: decodes records into samples.
      packer: chooses the samples of each row.
      collator: joins rows into arrays.
      process_index: index of this process.
      process_count: number of processes.
      workers: number of decoding processes; None: the value of the stage.

    Raises:
      DataError: the number of processes does not divide the batch size, or a source is too small.
    """
    stage = config.stages[stage_name]
    data = stage.data
    if stage.batch_size % process_count:
        raise DataError(
            f"stages.{stage_name}.batch_size = {stage.batch_size} "
            f"is not divisible by the number of processes, {process_count}"
        )
    open_streams = partial(SampleStreams, decoder, config.seed, stage_name)
    open_streams(process_count)  # raises DataError now rather than in a worker
    reader = SampleReader(
        open_streams,
        process_index=process_index,
        process_count=process_count,
        workers=data.workers if workers is None else workers,
        buffer=min(64, max(2, BUFFER_BYTES // collator.row_bytes)),
    )
    return BatchIterator(
        reader=reader,
        packer=packer,
        collator=collator,
        rows=stage.batch_size // process_count,
        max_bad_fraction=data.max_bad_fraction,
        settings={
            "stage": stage_name,
            "seed": config.seed,
            "mixture": decoder.mixture.fingerprint(),
            "process_index": process_index,
            "process_count": process_count,
            "batch_size": stage.batch_size,
            **{name: getattr(data, name) for name in SAVED_KEYS},
            "pack_lookahead": _if_set(data, "pack_lookahead"),
            "hybrid": [getattr(data, name) for name in HYBRID] if data.num_low_frames else None,
            **decoder.settings,
        },
        examples_per_epoch=len(decoder.mixture),
    )


def _if_set(data: DataConfig, name: str) -> Any:
    """A setting that differs from its default, or None, as in the states of older versions."""
    value = getattr(data, name)
    return None if value == getattr(DataConfig(), name) else value
