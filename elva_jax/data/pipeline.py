"""Batches of packed examples with an exact, JSON-able position.

Order: shuffle, shard, repeat, mix (`mixture`), decode in workers (`prepare`), and then, in the main process: drop and count bad records,
pack, batch. Everything up to decoding is a function of a place in endless streams (`position`). So the state of an iterator is
how much it has read and the places of the examples that still wait to be packed: nothing depends on the number of workers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags
from grain._src.python.dataset.transformations import process_prefetch
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.data import mixture as mixing
from elva_jax.data.conversation import check_tokenizer
from elva_jax.data.decode_example import CaptionDecoder, ConversationDecoder, Decoder
from elva_jax.data.iterator_state import Deals, Place, Reading, places, redistribute, trace
from elva_jax.data.mixture import Mixture, examples_per_epoch, stage_seed
from elva_jax.data.packing import AHEAD, Window, budgets, collate
from elva_jax.data.safe_read import Rejected
from elva_jax.data.workers import deaf_to_signals, prepare_worker
from elva_jax.errors import DataError
from elva_jax.video.layout import Counts

__all__ = [
    "BatchIterator",
    "examples_per_epoch",
    "examples_per_step",
    "make_batches",
    "make_teacher_batches",
    "redistribute",
]

# A worker whose last samples nobody reads cannot end by itself; Grain kills it then, but one after the other and after 25 seconds each.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 1

GRACE = 100  # records that the share of bad ones is at least taken of
REASONS = 100  # different reasons counted apart
BUFFER_BYTES = 2**28  # decoded examples held ahead of the batches
HYBRID = (
    "num_low_frames",
    "low_longest_edge",
    "hybrid_policy",
    "hybrid_probability",
)  # keys of a stage's data


class Streams:
    """The decoded records of the endless streams of a number of processes, by place; picklable, so that workers can hold one.

    Args:
      decoder: what turns a record into a sample.
      seed: the run's.
      stage_name: the stage, which has an order of its own.
      number: of streams, each of which has a slice of every source and random choices of its own.

    Raises:
      DataError: a source with fewer records than there are streams.
    """

    def __init__(self, decoder: Decoder, seed: int, stage_name: str, number: int):
        self._decoder = decoder
        self._seed = seed
        self._stage_name = stage_name
        self._number = number
        self._opened: dict[int, grain.MapDataset] = {}
        self._open(0)

    def __call__(self, place: Place) -> Any:
        """The sample of a place, or `Rejected`."""
        if place.stream not in self._opened:
            self._open(place.stream)
        return self._opened[place.stream][place.index]

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


class BatchIterator:
    """Endless batches of one process.

    Attributes:
      stats: of the last batch: examples, token_fill, patch_fill (shares of the row budgets), as plain numbers.
      seen: records read so far.
      reasons: how many records were dropped for which reason.
    """

    def __init__(
        self,
        open_streams: Callable[[int], Streams],
        collate_rows: Callable[[list[list]], dict],
        *,
        rows: int,
        capacity: Counts,
        single: bool,
        workers: int,
        buffer: int,
        max_bad_fraction: float,
        settings: dict[str, Any],
    ):
        self._open_streams = open_streams
        self._collate = collate_rows
        self._rows = rows
        self._capacity = capacity
        self._single = single
        self._workers = workers
        self._buffer = buffer
        self._max_bad_fraction = max_bad_fraction
        self._settings = settings
        self._upstream = None
        self._position = 0
        self._deals: Deals = []
        self._window = self._new_window()  # of (place, sample)
        self._again: deque[Place] = (
            deque()
        )  # waited when the state was saved, and still to be decoded again, before anything new is read
        self._first: dict[str, str] = {}
        self.seen = 0
        self.reasons: Counter[str] = Counter()
        self.stats: dict[str, float] = {}

    @property
    def waiting(self) -> list[Counts]:
        """What the decoded examples take that wait to be packed, oldest first."""
        return [counts for _, counts in self._window.waiting]

    @property
    def dropped(self) -> int:
        """Records dropped so far."""
        return sum(self.reasons.values())

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> dict:
        """The next batch.

        Raises:
          DataError: the share of bad records exceeds its limit.
        """
        rows = []
        for _ in range(self._rows):
            while self._window.short:
                place, sample = self._read()
                self._window.add((place, sample), self._cost(sample))
            rows.append([sample for _, sample in self._window.take()])
        self.stats = self._measure(rows)
        return self._collate(rows)

    def get_state(self) -> dict[str, Any]:
        """Where the next batch begins, JSON-able."""
        return {
            "position": self._position,
            "waiting": [
                list(place)
                for place in (*(place for (place, _), _ in self._window.waiting), *self._again)
            ],
            "deals": [list(positions) for positions in self._deals],
            "seen": self.seen,
            "reasons": dict(self.reasons),
            "first": dict(self._first),
            "settings": self._settings,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called; what waited is decoded again, by the workers, when the next batch is asked for.

        Raises:
          DataError: the state belongs to other data, other settings of the stage, or another process count (then `redistribute` it first).
        """
        for name, value in self._settings.items():
            saved = state["settings"].get(name)
            if saved != value:
                raise DataError(
                    f"data position: {name} was {saved} when it was saved and is {value} now; restore it, or start the stage anew"
                )
        self.close()
        self._position = state["position"]
        self.seen = state["seen"]
        self.reasons = Counter(state["reasons"])
        self._first = dict(state["first"])
        self._deals = state.get("deals", [])
        self._window = self._new_window()
        self._again = deque(places(state["waiting"], self._settings["process_index"]))

    def close(self) -> None:
        """Ends the workers; the next batch starts them again."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def _read(self) -> tuple[Place, Any]:
        """The next good sample and its place; bad records on the way are counted."""
        if self._again:
            place, sample = self._again[0], self._next()
            if isinstance(sample, Rejected):
                raise DataError(
                    f"{sample.key}: was readable when the checkpoint was made, and is not now ({sample.reason})"
                )
            self._again.popleft()
            return place, sample
        while True:
            sample = self._next()
            place = trace(
                self._deals,
                self._settings["process_count"],
                self._settings["process_index"],
                self._position,
            )
            self._position += 1
            self.seen += 1
            if not isinstance(sample, Rejected):
                return place, sample
            self._reject(sample)

    def _next(self) -> Any:
        if self._upstream is not None:
            return next(self._upstream)
        with deaf_to_signals():
            self._upstream = self._start()
            return next(self._upstream)  # starts the processes

    def _start(self) -> grain.DatasetIterator:
        index, count = self._settings["process_index"], self._settings["process_count"]
        reading = Reading(self._again, self._deals, index, count, self._position)
        first_count = len(self._deals[0]) if self._deals else count
        stream = grain.MapDataset.source(reading).map(self._open_streams(first_count))
        if self._workers == 0:
            return iter(
                stream.to_iter_dataset(
                    grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._buffer)
                )
            )
        if not flags.FLAGS.is_parsed():  # grain reads its flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        each = max(1, self._buffer // self._workers)
        stream = stream.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        options = grain.MultiprocessingOptions(
            num_workers=self._workers, per_worker_buffer_size=each
        )
        return iter(stream.mp_prefetch(options, worker_init_fn=prepare_worker))

    def _reject(self, bad: Rejected) -> None:
        reason = (
            bad.reason
            if bad.reason in self.reasons or len(self.reasons) < REASONS
            else "other reasons"
        )
        self.reasons[reason] += 1
        self._first.setdefault(reason, bad.key)
        if self.dropped > self._max_bad_fraction * max(self.seen, GRACE):
            listed = "; ".join(
                f"{n} x {reason} (first: {self._first[reason]})"
                for reason, n in self.reasons.most_common(5)
            )
            raise DataError(
                f"{self.dropped} of {self.seen} records are bad, over the limit data.max_bad_fraction = {self._max_bad_fraction}: {listed}"
            )

    def _new_window(self) -> Window:
        return Window(self._capacity, 0 if self._single else AHEAD)

    def _cost(self, sample: Any) -> Counts:
        return Counts(1, 1, 1, 1) if self._single else sample.counts

    def _measure(self, rows: list[list]) -> dict[str, float]:
        samples = [sample for row in rows for sample in row]
        stats = {"examples": float(len(samples))}
        if hasattr(samples[0], "counts"):
            stats["token_fill"] = sum(sample.counts.tokens for sample in samples) / (
                self._rows * self._capacity.tokens
            )
            stats["patch_fill"] = sum(sample.counts.patches for sample in samples) / (
                self._rows * self._capacity.patches
            )
        return stats


def make_batches(
    config: ConfigDict,
    stage_name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    process_index: int = 0,
    process_count: int = 1,
    teacher_size: int | None = None,
) -> BatchIterator:
    """Batches of an ELVA stage: this process's share, b = batch_size / process_count rows each.

    Each is a dict of patches uint8 [b, N, P*P*3], layout TokenLayout [b, S], and with `teacher_size` = Ht also
    teacher_frames uint8 [b, F, Ht, Ht, 3], indexed by `layout.frame`.

    Raises:
      DataError: data that is missing or does not divide among the processes, or a tokenizer without ChatML.
    """
    check_tokenizer(tokenizer)
    mixture = Mixture(config, stage_name)
    decoder = ConversationDecoder(mixture, config, stage_name, tokenizer, teacher_size)
    capacity, width = budgets(config, stage_name), config.model.patch_size**2 * 3
    bytes_each = capacity.patches * width + capacity.frames * (teacher_size or 0) ** 2 * 3

    def collate_rows(rows: list[list]) -> dict:
        return collate(rows, capacity, width, teacher_size)

    settings = {
        "merge_lines": config.model.merge_lines,
        "patch_size": config.model.patch_size,
        "floor": capacity.floor,
        "teacher_size": teacher_size,
    }
    return _iterator(
        config,
        stage_name,
        decoder,
        collate_rows,
        capacity,
        bytes_each,
        process_index,
        process_count,
        settings,
    )


def make_teacher_batches(
    config: ConfigDict,
    stage_name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Batches of a teacher stage: one clip and one caption a row, F = num_frames, Ht = teacher.image_size, L = teacher.text_length.

    Each is a dict of pixels uint8 [b, F, Ht, Ht, 3], frame_mask bool [b, F], token_ids int32 [b, L] (ended by `<|endoftext|>`) and
    mask bool [b, L].

    Raises:
      DataError: data that is missing or does not divide among the processes.
    """
    teacher, data = config.teacher, config.stages[stage_name].data
    decoder = CaptionDecoder(Mixture(config, stage_name), config, stage_name, tokenizer)
    padding = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def collate_rows(rows: list[list]) -> dict:
        size, b = teacher.image_size, len(rows)
        batch = {
            "pixels": np.zeros((b, data.num_frames, size, size, 3), np.uint8),
            "frame_mask": np.zeros((b, data.num_frames), bool),
            "token_ids": np.full((b, teacher.text_length), padding, np.int32),
            "mask": np.zeros((b, teacher.text_length), bool),
        }
        for r, (sample,) in enumerate(rows):
            frames, tokens = len(sample.pixels), len(sample.token_ids)
            batch["pixels"][r, :frames], batch["frame_mask"][r, :frames] = sample.pixels, True
            batch["token_ids"][r, :tokens], batch["mask"][r, :tokens] = sample.token_ids, True
        return batch

    bytes_each = data.num_frames * teacher.image_size**2 * 3
    settings = {"image_size": teacher.image_size, "text_length": teacher.text_length}
    return _iterator(
        config,
        stage_name,
        decoder,
        collate_rows,
        Counts(1, 1, 1, 1),
        bytes_each,
        process_index,
        process_count,
        settings,
    )


def examples_per_step(
    config: ConfigDict, stage_name: str, tokenizer: PreTrainedTokenizerBase
) -> float:
    """Examples that one optimiser step takes over all processes: estimated from the first rows where examples are packed.

    The same on every process, so that all derive the same number of steps from a number of epochs.
    """
    stage = config.stages[stage_name]
    if stage.kind == "teacher" or not stage.data.pack:
        return float(stage.batch_size)
    sample = config.copy_and_resolve_references()
    sample.stages[stage_name].batch_size = rows = min(stage.batch_size, 32)
    sample.stages[stage_name].data.workers = 0
    batches = make_batches(sample, stage_name, tokenizer)
    packed = []
    for _ in range(2):
        next(batches)
        packed.append(batches.stats)
    batches.close()
    # The first rows favour long examples, but in the long run all that is read is packed: the mean length is that of all that was read.
    tokens = sum(stats["token_fill"] for stats in packed) * rows * stage.data.seq_len
    examples = sum(stats["examples"] for stats in packed) + len(batches.waiting)
    mean_tokens = (tokens + sum(counts.tokens for counts in batches.waiting)) / examples
    return tokens / (2 * rows) / mean_tokens * stage.batch_size


def _iterator(
    config: ConfigDict,
    stage_name: str,
    decoder: Decoder,
    collate_rows: Callable[[list[list]], dict],
    capacity: Counts,
    bytes_each: int,
    process_index: int,
    process_count: int,
    settings: dict[str, Any],
) -> BatchIterator:
    stage = config.stages[stage_name]
    data = stage.data
    if stage.batch_size % process_count:
        raise DataError(
            f"stages.{stage_name}.batch_size = {stage.batch_size} does not divide among {process_count} processes"
        )
    single = stage.kind == "teacher" or not data.pack
    open_streams = partial(Streams, decoder, config.seed, stage_name)
    open_streams(process_count)  # so that what cannot work is refused now
    names = (
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
    return BatchIterator(
        open_streams,
        collate_rows,
        rows=stage.batch_size // process_count,
        capacity=capacity,
        single=single,
        workers=data.workers,
        buffer=min(64, max(2, BUFFER_BYTES // bytes_each)),
        max_bad_fraction=data.max_bad_fraction,
        settings={
            "stage": stage_name,
            "seed": config.seed,
            "mixture": decoder.mixture.fingerprint(),
            "process_index": process_index,
            "process_count": process_count,
            "batch_size": stage.batch_size,
            **{name: data[name] for name in names},
            "hybrid": [data[name] for name in HYBRID] if data.num_low_frames else None,
            **settings,
        },
    )
