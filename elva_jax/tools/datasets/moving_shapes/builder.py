"""The TFDS builder of moving_shapes (ArrayRecord files, without TensorFlow), and `build`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from rich.console import Console
from rich.progress import Progress

from elva_jax.errors import DataError
from elva_jax.tools.datasets.moving_shapes import records
from elva_jax.utils.files import lock
from elva_jax.utils.process_map import ProcessKilledError, process_map
from elva_jax.utils.terminal import is_watched
from elva_jax.utils.workers import STOPPING, end_with_parent

SIZES = {  # records per split
    "easy": {"image": 8000, "train": 14000, "validation": 260, "test": 540, "long": 120},
    "hard": {"image": 4000, "train": 8000, "validation": 260, "test": 540, "long": 120},
}
Report = Callable[[str, int, int], None]  # split, records done, records in all


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Clips and stills of colored shapes that move, appear, change and flash, with digits.

    Splits: image (PNG stills, the first 30 % with a single object), train (MP4 clips of 8 frames or
    more, the first 20 % with a single object), validation and test (clips of several objects), long
    (32 to 64 frames with a needle).

    A record is {"id", "media" (file bytes), "kind" (video | image), "annotation" (UTF-8 JSON of
    `language.annotate`)}.

    Args:
      seed: the data are a function of the config's name, this seed and the sizes.
      sizes: records per split; other splits are not made. None: `SIZES` of the config.
      map_fn: makes the records in order: `map`, or that of a process pool. The data do not
        depend on it.
      report: called from time to time with (split, records done, records in total).
      **kwargs: of tfds.core.DatasetBuilder: config ("easy" | "hard"), data_dir.
    """

    name = "moving_shapes"
    # TFDS would look for it with importlib_resources, which it does not install.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's own interface)
        tfds.core.BuilderConfig(
            name="easy",
            description="Six colours, four shapes, one canvas of nine places, plain words.",
        ),
        tfds.core.BuilderConfig(
            name="hard",
            description="Eight colours, six shapes, two sizes, noise, varied canvases and words.",
        ),
    ]

    def __init__(
        self,
        *,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        map_fn: Callable = map,
        report: Report | None = None,
        **kwargs,
    ) -> None:
        self._seed = seed
        self._sizes = sizes
        self._map = map_fn
        self._report = report or (lambda split, done, total: None)
        super().__init__(**{"file_format": "array_record", **kwargs})

    @property
    def sizes(self) -> dict[str, int]:
        """Records per split, in the order in which the splits are made."""
        sizes = SIZES[self.builder_config.name] if self._sizes is None else self._sizes
        return {split: sizes[split] for split in records.SPLITS if sizes.get(split)}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered clips of colored shapes with captions and questions.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "media": tfds.features.Scalar(np.object_),
                    "kind": tfds.features.Text(),
                    "annotation": tfds.features.Scalar(np.object_),
                }
            ),
            # Splits start with single objects, so that a slice of a split is a curriculum level.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(seed=self._seed),
        )

    def _log_download_bytes(self) -> None:
        """Silences TFDS, which would report a download."""

    def _log_download_done(self) -> None:
        """Silences TFDS, which would report a download."""

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split, total) for split, total in self.sizes.items()}

    def _generate_examples(self, split: str, total: int) -> Iterator[tuple[int, dict]]:
        tasks = [
            (self.builder_config.name, self._seed, split, index, total) for index in range(total)
        ]
        for index, record in enumerate(self._map(records.record_of_task, tasks)):
            yield index, record
            if (index + 1) % 200 == 0 or index + 1 == total:
                self._report(split, index + 1, total)


def build(
    data_dir: str | os.PathLike,
    config_name: str = "easy",
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> MovingShapes:
    """Builds one config under `data_dir` unless it is there, and returns its builder.

    A killed run leaves an `incomplete` folder, which the next run removes. A second run at the same
    time waits for the first.

    Args:
      data_dir: the TFDS root; the files go to <data_dir>/moving_shapes/<config_name>/1.0.0.
      config_name: easy | hard.
      seed: see MovingShapes.
      sizes: see MovingShapes.
      workers: processes that render; 1: this process; None: one per core.
      console: shows the progress; None: standard output.

    Raises:
      DataError: an unknown config or split, data of another seed or other sizes are there, a file
        cannot be written, or a rendering process was killed.
    """
    if config_name not in SIZES:
        known = ", ".join(SIZES)
        raise DataError(f"moving_shapes/{config_name}: no such config; choose one of {known}")
    if unknown := set(sizes or ()) - set(records.SPLITS):
        known = ", ".join(records.SPLITS)
        raise DataError(f"moving_shapes: no split {sorted(unknown)[0]!r}; choose among {known}")
    root = Path(data_dir) / MovingShapes.name
    root.mkdir(parents=True, exist_ok=True)
    with (
        lock(root / f".{config_name}.lock"),
        _progress(console or Console(), config_name) as report,
        _mapper(workers) as map_fn,
    ):
        builder = MovingShapes(
            config=config_name,
            data_dir=str(data_dir),
            seed=seed,
            sizes=sizes,
            map_fn=map_fn,
            report=report,
        )
        if (Path(builder.data_dir) / "dataset_info.json").exists():
            _check_same(builder, seed)
            return builder
        for left in (root / config_name).glob("incomplete.*"):
            shutil.rmtree(left)
        tfds.disable_progress_bar()
        try:
            with _explained(root / config_name):
                builder.download_and_prepare()
        finally:
            tfds.enable_progress_bar()
    return builder


def _check_same(builder: MovingShapes, seed: int) -> None:
    found = {name: split.num_examples for name, split in builder.info.splits.items()}
    found_seed = (builder.info.metadata or {}).get("seed")
    if found != builder.sizes or found_seed != seed:
        raise DataError(
            f"{builder.data_dir}: holds seed {found_seed} and {found}, "
            f"not seed {seed} and {builder.sizes}; delete it or choose another data_dir"
        )


def _prepare_renderer() -> None:
    """Makes a rendering process ignore Ctrl-C, and end with its pool or its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    end_with_parent()


def _mapper(workers: int | None) -> contextlib.AbstractContextManager[Callable]:
    """A `map`, over processes unless one worker is asked for."""
    workers = workers or os.cpu_count() or 1
    return contextlib.nullcontext(map) if workers == 1 else process_map(workers, _prepare_renderer)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns what a full disk or a killed process causes into a line."""
    try:
        yield
    except ProcessKilledError:
        why = "a rendering process was killed, perhaps for lack of memory"
        raise DataError(f"{folder}: {why}; start again, perhaps with fewer --workers") from None
    except RuntimeError as error:  # ArrayRecord's
        _, failed, reason = str(error).partition("write() failed: ")
        if not failed:
            raise
        reason = reason.partition(";")[0]
        raise DataError(f"{folder}: cannot be written ({reason}); start again") from None


@contextlib.contextmanager
def _progress(console: Console, config_name: str) -> Iterator[Report]:
    """Shows bars on a terminal, and prints one line per finished split."""
    start = time.monotonic()

    def line(split: str, done: int, total: int) -> None:
        if done == total:
            seconds = time.monotonic() - start
            console.print(
                f"moving_shapes/{config_name} {split}: {total} records ({seconds:.0f} s)",
                highlight=False,
                soft_wrap=True,
            )

    if not is_watched(console):
        yield line
        return
    with Progress(console=console, transient=True) as bars:
        tasks = {}

        def show(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bars.add_task(f"moving_shapes/{config_name} {split}", total=total)
            bars.update(tasks[split], completed=done)
            line(split, done, total)

        yield show
