"""Builds one shard of a plan.

    .NAME.HOST.tmp  --rename-->  NAME  --checksum-->  build/SPLIT/00003.json

The entry in build/ is written last, so that a shard is either complete or not there.
"""

from __future__ import annotations

import contextlib
import functools
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
from elva_jax.tools.datasets.build.plan import VERSION, Plan, read_json
from elva_jax.tools.datasets.build.prepare import Preparation
from elva_jax.tools.datasets.build.statistics import Statistics
from elva_jax.utils.files import lock, sha256, write_atomic

Examples = Iterator[tuple[int, dict[str, Any]]]
ShardsBySplit = Mapping[str, Sequence[Callable[[], Examples]]]


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A source as a TFDS builder.

    Its own `download_and_prepare` writes the same shards, but in one process that cannot be
    resumed.

    Args:
      name: of the data set.
      data_dir: the folder of built data sets.
      shards: for each split, functions that yield the (key, record) pairs of a shard.
    """

    # TFDS would look for it with importlib_resources, which it does not install.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, name: str, data_dir: str | Path, shards: ShardsBySplit):
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

    def _shard_iterators_per_split(self, dl_manager) -> ShardsBySplit:
        del dl_manager
        return self._shards

    def write(self, path: Path, examples: Examples) -> None:
        """Writes a shard as `download_and_prepare` does.

        Holds one record at a time, and writes the same bytes in every process.
        """
        features = self.info.features
        serializer = ExampleSerializer(features.get_serialized_info())

        def serialize(value: dict[str, Any]) -> bytes:
            example = serializer.get_tf_example(features.encode_example(value))
            return example.SerializeToString(deterministic=True)

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
    rejected: list[dict[str, Any]],
    report: Callable[[], None] = lambda: None,
) -> Examples:
    """Yields (number in the source, record) for the usable records of a shard.

    Args:
      plan: of the data set.
      preparation: of the records of the source.
      shard: its number.
      statistics: is updated with all records.
      rejected: gets number, key and reason of the unusable records.
      report: called after each record.
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
    """Whether a shard is complete.

    Raises:
      DataError: it belongs to another plan.
    """
    path = plan.entry(shard)
    if not path.exists():
        return False
    entry = read_json(path)
    if entry["plan"] != plan.digest:
        raise DataError(
            f"{path}: belongs to a build with other settings; choose another --name, "
            f"or delete {plan.state} to start over"
        )
    file = plan.file(shard)
    return file.exists() and file.stat().st_size == entry["bytes"]


def build(
    plan: Plan, preparation: Preparation, shard: int, report: Callable[[], None] = lambda: None
) -> None:
    """Builds a shard unless it is finished.

    Raises:
      DataError: another process builds it, or it cannot be written.
    """
    file = plan.file(shard)
    temporary = file.with_name(f".{file.name}.{os.uname().nodename}.tmp")
    statistics = Statistics()
    rejected: list[dict[str, Any]] = []
    try:
        with _locked(temporary):
            if is_finished(plan, shard):
                return
            generated = examples(plan, preparation, shard, statistics, rejected, report)
            Builder(plan.name, plan.data_dir, {}).write(temporary, generated)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            digest, size = sha256(temporary), temporary.stat().st_size
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
            write_atomic(plan.entry(shard), json.dumps(entry, ensure_ascii=False) + "\n")
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise DataError(f"{file}: cannot be written ({reason}); start again to continue") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock on an unfinished shard, and removes the file at the end."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path, wait=False))
        except BlockingIOError:
            raise DataError(
                f"{path}: another process builds this shard; wait for it, "
                "or give each process its own --shard"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
