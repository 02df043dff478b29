"""The files beside the shards of a finished build: manifest, rejected records, TFDS metadata."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from elva_jax.errors import DataError
from elva_jax.tools.datasets.build.plan import Plan, read_json
from elva_jax.tools.datasets.build.prepare import TokenSettings
from elva_jax.tools.datasets.build.shard import Builder, is_finished
from elva_jax.tools.datasets.build.statistics import LISTED, Statistics
from elva_jax.utils.files import open_atomic, sha256, write_atomic


def missing(plan: Plan) -> list[int]:
    """The shards that are not finished."""
    return [shard for shard in range(plan.shards) if not is_finished(plan, shard)]


def finish(plan: Plan) -> dict[str, Any]:
    """Makes a data set of finished shards and returns its manifest.

    Can be repeated, and several hosts can do it at the same time.

    Raises:
      DataError: no record of the source is usable.
    """
    statistics, shards = Statistics(), []
    with open_atomic(rejected_path(plan.folder, plan.split)) as file:
        for shard in range(plan.shards):
            entry = read_json(plan.entry(shard))
            statistics.merge(Statistics.from_json(entry.pop("statistics")))
            for record in entry.pop("rejected"):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            shards.append({name: value for name, value in entry.items() if name != "plan"})
    if not statistics.records:
        reasons = "; ".join(
            f"{number} x {reason} (first: {statistics.first[reason]})"
            for reason, number in statistics.rejected.most_common(3)
        )
        raise DataError(f"{plan.folder}: none of {plan.records} records can be used: {reasons}")
    found = {
        "name": plan.name,
        "split": plan.split,
        "source": {**plan.settings, "records": plan.records},
        "statistics": statistics.to_json(LISTED),
        "shards": shards,
    }
    content = json.dumps(found, indent=1, ensure_ascii=False)
    write_atomic(manifest_path(plan.folder, plan.split), content + "\n")
    _write_metadata(plan)
    # Unfinished shards of processes that were killed.
    for left in plan.folder.glob(f".{plan.name}-{plan.split}.array_record-*.tmp"):
        left.unlink(missing_ok=True)
    return found


def manifest_path(folder: Path, split: str) -> Path:
    """The manifest of a split."""
    return folder / f"manifest-{split}.json"


def rejected_path(folder: Path, split: str) -> Path:
    """The list of a split's rejected records, with the reasons."""
    return folder / f"rejected-{split}.jsonl"


def statistics(folder: Path, split: str) -> tuple[Statistics, TokenSettings] | None:
    """The statistics in the manifest of a split, and how its tokens were counted."""
    if not manifest_path(folder, split).exists():
        return None
    found = read_json(manifest_path(folder, split))
    settings = TokenSettings(**found["source"]["tokens_at"])
    return Statistics.from_json(found["statistics"]), settings


def verify(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yields the file of each shard and its damage: "" if it has the bytes that were built.

    Raises:
      DataError: there is no manifest.
    """
    path = manifest_path(folder, split)
    if not path.exists():
        raise DataError(
            f"{path}: not there; only what `elva data build SOURCE --name …` finished has checksums"
        )
    for shard in read_json(path)["shards"]:
        yield shard["file"], _damage(folder / shard["file"], shard)


def _damage(file: Path, shard: dict[str, Any]) -> str:
    if not file.exists():
        return "is missing"
    size = file.stat().st_size
    if size != shard["bytes"]:
        return f"has {size:,} bytes, not {shard['bytes']:,}"
    return "" if sha256(file) == shard["sha256"] else "its bytes have changed (SHA-256 differs)"


def _write_metadata(plan: Plan) -> None:
    """Writes TFDS's metadata of all finished splits.

    TFDS recognizes a data set by features.json, so that file comes last.
    """
    builder = Builder(plan.name, plan.data_dir, {})
    splits = []
    for file in sorted(plan.folder.glob("manifest-*.json")):
        found = read_json(file)
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=plan.name,
            split=found["split"],
            filetype_suffix="array_record",
        )
        lengths = [shard["records"] for shard in found["shards"]]
        size = sum(shard["bytes"] for shard in found["shards"])
        splits.append(tfds.core.SplitInfo(found["split"], lengths, size, template))
    builder.info.set_splits(tfds.core.SplitDict(splits))
    folder = Path(tempfile.mkdtemp(dir=plan.state))
    try:
        builder.info.write_to_directory(folder)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == "features.json"):
            file.replace(plan.folder / file.name)
    finally:
        shutil.rmtree(folder)
