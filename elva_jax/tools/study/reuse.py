"""Takes trainings from the folders of other studies, so that none is done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from elva_jax.tools.study.jobs import COST, JOB, RESULT, Job, differences
from elva_jax.utils import owner
from elva_jax.utils.files import write_atomic
from elva_jax.utils.read import read_json

COPY = "run.copy"  # until it is whole


def take_training(job: Job, others: Sequence[Path]) -> Path | None:
    """Copies the run of a finished job with the same training, and what that training cost.

    Args:
      job: is owned by this process.
      others: folders of studies; one that has been removed has nothing to take.

    Returns:
      The folder of that job; None where there is none, or where the training of `job` has begun.
    """
    if not job.command or job.run.exists():
        return None
    for folder in _finished(job.seed, others):
        run = folder / job.run.name
        other = any(differences(read_json(folder / JOB)["train"], job.identity["train"]))
        if other or not run.is_dir() or folder.samefile(job.folder):
            continue
        copy = job.folder / COPY
        shutil.rmtree(copy, ignore_errors=True)
        ignored = shutil.ignore_patterns(f"{owner.NAME}*")
        shutil.copytree(run, copy, symlinks=True, ignore=ignored)
        parts = [part for part in read_json(folder / COST)["parts"] if part["part"] == "train"]
        write_atomic(job.folder / COST, json.dumps({"parts": parts}))
        copy.rename(job.run)
        return folder
    return None


def _finished(seed: int, others: Sequence[Path]) -> Iterator[Path]:
    for other in others:
        for result in sorted(other.glob(f"*/seed-{seed}/{RESULT}")):
            if (result.parent / JOB).is_file() and (result.parent / COST).is_file():
                yield result.parent
