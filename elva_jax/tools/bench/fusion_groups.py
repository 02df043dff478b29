"""Groups of videos for `elva bench fusion`, and the statistics of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elva_jax.errors import DataError
from elva_jax.evaluation.benchmarks.tables import MEDIA_SUFFIXES
from elva_jax.evaluation.results.intervals import FEWEST, interval
from elva_jax.evaluation.results.resampling import RESAMPLES, SEED
from elva_jax.utils.failures import repr_path
from elva_jax.utils.read import parse_json, read_lines

Groups = dict[str, list[Path]]
EXAMPLE = '{"video": "clips/a.mp4", "group": "motion"}'


def read_groups(path: Path) -> Groups:
    """Videos and images by group.

    Args:
      path: a folder with a folder of media for each group, or a .jsonl whose lines name a video,
        relative to the file's folder, and its group.

    Raises:
      DataError: a file that is damaged or missing, or that names no media.
    """
    groups = _of_folder(path) if path.is_dir() else _of_lines(path)
    if not groups:
        raise DataError(
            f"{repr_path(path)}: holds no media; give a folder with a folder of videos for each"
            f" group, or a .jsonl with lines such as {EXAMPLE}"
        )
    return groups


def _of_folder(path: Path) -> Groups:
    found = {
        folder.name: sorted(file for file in folder.iterdir() if _is_medium(file))
        for folder in sorted(path.iterdir())
        if folder.is_dir()
    }
    return {group: files for group, files in found.items() if files}


def _is_medium(file: Path) -> bool:
    return file.suffix.lower() in MEDIA_SUFFIXES


def _of_lines(path: Path) -> Groups:
    groups: Groups = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{repr_path(path)}, line {number}"
        try:
            record = parse_json(line)
        except ValueError as problem:
            raise DataError(f"{where}: is not JSON ({problem}); repair the line") from None
        record = record if isinstance(record, dict) else {}
        video, group = record.get("video"), record.get("group")
        if not (isinstance(video, str) and video and isinstance(group, str) and group):
            raise DataError(f"{where}: needs the texts video and group, such as {EXAMPLE}")
        file = path.parent / video
        if not file.exists():
            raise DataError(
                f"{where}: {repr_path(file)}: no such file; paths are relative to the list's folder"
            )
        groups.setdefault(group, []).append(file)
    return groups


def summarize(weights: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean weight of each encoder over a group's videos, with its 95 % interval.

    The interval is that of a bootstrap over the videos; fewer than five videos have none.

    Args:
      weights: of every video, by encoder; at least one.

    Returns:
      By encoder: "mean", and "low" and "high" or None.
    """
    names = list(weights[0])
    values = np.asarray([[each[name] for name in names] for each in weights])
    drawn = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    means = values[drawn].mean(axis=1)
    found = {}
    for column, name in enumerate(names):
        bounds = interval(means[:, column]) if len(values) >= FEWEST else (None, None)
        mean = float(values[:, column].mean())
        found[name] = {"mean": mean, "low": bounds[0], "high": bounds[1]}
    return found
