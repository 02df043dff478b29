"""One shard of a plan: written under another name, then renamed, then entered with its checksum; so it is whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from elva_jax.data import record
from elva_jax.data.safe_read import Rejected
from elva_jax.errors import DataError
from elva_jax.tools.datasets.build.plan import VERSION, Plan, read_json, write
from elva_jax.tools.datasets.build.prepare import Preparation
from elva_jax.tools.datasets.build.statistics import Statistics

Examples = Iterator[tuple[int, dict[str, Any]]]


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A source as TFDS sees it. Its own `download_and_prepare` gives the same shards, in one process that cannot be resumed.

    Args:
      name: of the data set.
      data_dir: the folder under which data sets are built.
      shards: of each split, functions that yield a shard's (key, record).
    """

    code_path = epath.Path(
        __file__
    )  # TFDS would look for it with importlib_resources, which it does not install
    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        name: str,
        data_dir: str | Path,
        shards: Mapping[str, Sequence[Callable[[], Examples]]],
    ):
        self.name = name
        self._shards = shards
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Conversations about videos and images, built by `elva data build`.",
            features=record.features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(format=record.FORMAT),
        )

    def _shard_iterators_per_split(
        self, dl_manager
    ) -> Mapping[str, Sequence[Callable[[], Examples]]]:
        del dl_manager
        return self._shards

    def write(self, path: Path, examples: Examples) -> None:
        """Writes a shard as `download_and_prepare` does, but never holds more than one record, and the same bytes in every process."""
        serializer = ExampleSerializer(self.info.features.get_serialized_info())

        def serialize(value: dict[str, Any]) -> bytes:
            return serializer.get_tf_example(
                self.info.features.encode_example(value)
            ).SerializeToString(deterministic=True)

        self._example_writer().write(path, ((key, serialize(value)) for key, value in examples))


def builder(plan: Plan, preparation: Preparation) -> Builder:
    """The TFDS builder of a plan."""
    generators = [
        functools.partial(examples, plan, preparation, k, Statistics(), [])
        for k in range(plan.shards)
    ]
    return Builder(plan.name, plan.data_dir, {plan.split: generators})


def examples(
    plan: Plan,
    preparation: Preparation,
    shard: int,
    statistics: Statistics,
    rejected: list[dict[str, str]],
    report: Callable[[], None] = lambda: None,
) -> Examples:
    """Yields (number in the source, record) of a shard's good records; counts them, and lists the others.

    Args:
      plan: of the data set.
      preparation: of the source's records.
      shard: which one.
      statistics: what counts them.
      rejected: takes the key and the reason of the others.
      report: called behind each record.
    """
    for index in plan.part(shard):
        found = preparation.pack(index)
        if isinstance(found, Rejected):
            statistics.reject(found.key, found.reason)
            rejected.append({"record": index, **found.to_json()})
        else:
            packed, measured = found
            statistics.add(measured)
            yield index, packed
        report()


def is_finished(plan: Plan, shard: int) -> bool:
    """Whether a shard is there, whole.

    Raises:
      DataError: it is one of another plan.
    """
    path = plan.entry(shard)
    if not path.exists():
        return False
    entry = read_json(path)
    if entry["plan"] != plan.digest:
        raise DataError(
            f"{path}: belongs to a build with other settings; choose another --name, or delete {plan.state} to begin anew"
        )
    file = plan.file(shard)
    return file.exists() and file.stat().st_size == entry["bytes"]


def build(
    plan: Plan, preparation: Preparation, shard: int, report: Callable[[], None] = lambda: None
) -> None:
    """Builds a shard that is not finished.

    Raises:
      DataError: another process builds it, or it cannot be written.
    """
    file = plan.file(shard)
    temporary = file.with_name(f".{file.name}.{os.uname().nodename}.tmp")
    statistics, rejected = Statistics(), []
    try:
        with _locked(temporary):
            if is_finished(plan, shard):
                return
            generated = examples(plan, preparation, shard, statistics, rejected, report)
            Builder(plan.name, plan.data_dir, {}).write(temporary, generated)
            digest = sha256(temporary)
            size = temporary.stat().st_size
            temporary.replace(file)
            part = plan.part(shard)
            entry = {
                "plan": plan.digest,
                "file": file.name,
                "sha256": digest,
                "bytes": size,
                "begin": part.start,
                "end": part.stop,
                "records": statistics.records,
                "statistics": statistics.to_json(),
                "rejected": rejected,
            }
            write(plan.entry(shard), json.dumps(entry, ensure_ascii=False))
    except (OSError, RuntimeError) as error:  # ArrayRecord's own errors are of the latter type
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise DataError(f"{file}: cannot be written ({reason}); start again to go on") from None


def sha256(path: Path) -> str:
    """Of a file, whose bytes are on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an unfinished shard, and leaves none behind."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{path}: another process builds this shard; wait for it, or give each its own --shard"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
