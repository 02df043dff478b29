"""What a finished build leaves beside its shards: the manifest, the rejected records, and the metadata that TFDS reads."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from elva_jax.errors import DataError
from elva_jax.tools.datasets.build.plan import Plan, read_json, write
from elva_jax.tools.datasets.build.prepare import Counting
from elva_jax.tools.datasets.build.shard import Builder, is_finished, sha256
from elva_jax.tools.datasets.build.statistics import LISTED, Statistics


def missing(plan: Plan) -> list[int]:
    """The shards that are not finished."""
    return [shard for shard in range(plan.shards) if not is_finished(plan, shard)]


def finish(plan: Plan) -> dict[str, Any]:
    """Makes a data set of finished shards, and returns its manifest; safe to repeat, and to be done by several hosts.

    Raises:
      DataError: not one record could be used.
    """
    statistics, shards = Statistics(), []
    rejected = rejected_path(plan.folder, plan.split)
    temporary = rejected.with_name(f".{rejected.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for shard in range(plan.shards):
            entry = read_json(plan.entry(shard))
            statistics.merge(Statistics.from_json(entry.pop("statistics")))
            for record in entry.pop("rejected"):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            shards.append({name: value for name, value in entry.items() if name != "plan"})
    temporary.replace(rejected)
    if not statistics.records:
        reasons = "; ".join(
            f"{n} x {reason} (first: {statistics.first[reason]})"
            for reason, n in statistics.rejected.most_common(3)
        )
        raise DataError(f"{plan.folder}: none of {plan.records} records can be used: {reasons}")
    found = {
        "name": plan.name,
        "split": plan.split,
        "source": {**plan.settings, "records": plan.records},
        "statistics": statistics.to_json(LISTED),
        "shards": shards,
    }
    write(manifest_path(plan.folder, plan.split), json.dumps(found, indent=1, ensure_ascii=False))
    _write_metadata(plan)
    for left in plan.folder.glob(
        f".{plan.name}-{plan.split}.array_record-*.tmp"
    ):  # of processes that were killed
        left.unlink(missing_ok=True)
    return found


def manifest_path(folder: Path, split: str) -> Path:
    """The manifest of a split."""
    return folder / f"manifest-{split}.json"


def rejected_path(folder: Path, split: str) -> Path:
    """Where the records of a split that were rejected are listed, with the reasons."""
    return folder / f"rejected-{split}.jsonl"


def statistics(folder: Path, split: str) -> tuple[Statistics, Counting] | None:
    """What the manifest of a split counts, and what its tokens are counted for; None where there is no manifest."""
    if not manifest_path(folder, split).exists():
        return None
    found = read_json(manifest_path(folder, split))
    return Statistics.from_json(found["statistics"]), Counting(**found["source"]["tokens_at"])


def verify(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yields each shard's file and what is wrong with it: "" where it has the bytes that were built.

    Raises:
      DataError: there is no manifest.
    """
    if not manifest_path(folder, split).exists():
        raise DataError(
            f"{manifest_path(folder, split)}: not there; only what `elva data build SOURCE --name …` finished has checksums"
        )
    for shard in read_json(manifest_path(folder, split))["shards"]:
        file = folder / shard["file"]
        if not file.exists():
            yield shard["file"], "is missing"
        elif file.stat().st_size != shard["bytes"]:
            yield shard["file"], f"has {file.stat().st_size:,} bytes, not {shard['bytes']:,}"
        else:
            yield (
                shard["file"],
                ""
                if sha256(file) == shard["sha256"]
                else "its bytes have changed (SHA-256 differs)",
            )


def _write_metadata(plan: Plan) -> None:
    """Writes TFDS's metadata of all finished splits; features.json, by which it knows a data set, comes last."""
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
        splits.append(
            tfds.core.SplitInfo(
                found["split"], lengths, sum(shard["bytes"] for shard in found["shards"]), template
            )
        )
    builder.info.set_splits(tfds.core.SplitDict(splits))
    folder = Path(tempfile.mkdtemp(dir=plan.state))
    try:
        builder.info.write_to_directory(folder)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == "features.json"):
            file.replace(plan.folder / file.name)
    finally:
        shutil.rmtree(folder)
