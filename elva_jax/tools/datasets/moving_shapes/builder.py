"""The TFDS builder of moving_shapes (ArrayRecord files, no TensorFlow), and `build`, which prepares it on disk."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import shutil
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

SIZES = {  # records of each split
    "easy": {"image": 8000, "train": 14000, "validation": 260, "test": 540, "long": 120},
    "hard": {"image": 4000, "train": 8000, "validation": 260, "test": 540, "long": 120},
}
Report = Callable[[str, int, int], None]  # split, records done, records in all


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Rendered clips of coloured shapes that move, appear, change, flash, with digits; and stills of the same.

    Splits: image (PNG stills, the first 30 % with a single object), train (MP4 clips of 8 frames or more, the first 20 % with a single
    object), validation and test (such clips of several objects), long (32 to 64 frames with a needle).
    A record is {"id", "media" (file bytes), "kind" (video | image), "annotation" (UTF-8 JSON of language.annotate)}.

    Args:
      seed: the data are a function of the config's name, this seed and the sizes.
      sizes: records of each split; splits left out are not made. None: SIZES of the config.
      map_fn: makes the records, in order: `map`, or the `imap` of a pool of processes. The data do not depend on it.
      report: called now and then with (split, records done, records in all).
      **kwargs: of tfds.core.DatasetBuilder: config ("easy" | "hard"), data_dir.
    """

    name = "moving_shapes"
    code_path = epath.Path(
        __file__
    )  # TFDS would look for it with importlib_resources, which it does not install
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
        """Records of each split to be made, in the order of making."""
        sizes = SIZES[self.builder_config.name] if self._sizes is None else self._sizes
        return {split: sizes[split] for split in records.SPLITS if sizes.get(split)}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered clips of coloured shapes with captions and questions.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "media": tfds.features.Scalar(np.object_),
                    "kind": tfds.features.Text(),
                    "annotation": tfds.features.Scalar(np.object_),
                }
            ),
            disable_shuffling=True,  # stills and training clips start with single objects; a slice of a split is a curriculum level
            metadata=tfds.core.MetadataDict(seed=self._seed),
        )

    def _log_download_bytes(self) -> None:
        """Silences TFDS's line about a download: nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Silences TFDS's line about a download: nothing was downloaded."""

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
    """Prepares one config under `data_dir` and returns its builder; at once where it is there already.

    A killed run leaves an `incomplete` folder that the next run removes; two runs at a time wait for each other.

    Args:
      data_dir: the TFDS root; the files go to <data_dir>/moving_shapes/<config_name>/1.0.0.
      config_name: easy | hard.
      seed: see MovingShapes.
      sizes: see MovingShapes.
      workers: processes that draw and encode; 1: this one; None: one per core.
      console: where the progress goes; None: standard output.

    Raises:
      DataError: an unknown config or split, or another seed or other sizes than those of the data already there.
    """
    if config_name not in SIZES:
        raise DataError(
            f"moving_shapes/{config_name}: no such config; choose one of {', '.join(SIZES)}"
        )
    if unknown := set(sizes or ()) - set(records.SPLITS):
        raise DataError(
            f"moving_shapes: no split {sorted(unknown)[0]!r}; choose among {', '.join(records.SPLITS)}"
        )
    root = Path(data_dir) / MovingShapes.name
    root.mkdir(parents=True, exist_ok=True)
    with (
        _locked(root / f".{config_name}.lock"),
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
        tfds.display_progress_bar(False)
        try:
            builder.download_and_prepare()
        finally:
            tfds.display_progress_bar(True)
    return builder


def _check_same(builder: MovingShapes, seed: int) -> None:
    found = {name: split.num_examples for name, split in builder.info.splits.items()}
    found_seed = (builder.info.metadata or {}).get("seed")
    if found != builder.sizes or found_seed != seed:
        raise DataError(
            f"{builder.data_dir}: holds seed {found_seed} and {found}, not seed {seed} and {builder.sizes}; "
            "delete it or choose another data_dir"
        )


@contextlib.contextmanager
def _mapper(workers: int | None) -> Iterator[Callable]:
    """A `map` over processes, whose start waits for its first use."""
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield map
        return
    with contextlib.ExitStack() as stack:

        @functools.cache
        def pool():
            # spawn: threads of JAX or of TFDS in this process make fork unsafe.
            return stack.enter_context(multiprocessing.get_context("spawn").Pool(workers))

        yield lambda function, tasks: pool().imap(function, tasks, chunksize=32)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress(console: Console, config_name: str) -> Iterator[Report]:
    """Bars on a terminal, elsewhere a line for each finished split."""
    start = time.monotonic()

    def line(split: str, done: int, total: int) -> None:
        if done == total:
            seconds = time.monotonic() - start
            console.print(
                f"moving_shapes/{config_name} {split}: {total} records ({seconds:.0f} s)",
                highlight=False,
                soft_wrap=True,
            )

    if not console.is_terminal:
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
