"""The jobs of a study, and where they are on disk.

OUT/VARIANT/seed-0/run/         the workdir of `elva train`; absent where nothing is trained
/job.json     what it is; later starts compare it
/train.log, measure.log
/cost.json    seconds of every start
/result.json  its answers; the job is done
/failed.json  why the last try ended
OUT/summary.json, report.md, report.png
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elva_jax.config.load import load
from elva_jax.config.serialize import config_to_dict
from elva_jax.config.stages import stages_of_kind
from elva_jax.errors import ConfigError
from elva_jax.tools.study.describe import Study, Variant
from elva_jax.utils import numbers
from elva_jax.utils.json import jsonable
from elva_jax.utils.read import read_json

RESULT, FAILED, JOB, COST = "result.json", "failed.json", "job.json", "cost.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: Path
    run: Path  # the workdir that is measured; another job's where nothing is trained
    needs: Path | None  # the folder of the job that must be done before
    command: tuple[str, ...]  # of `elva train`, after that word; () where nothing is trained
    environment: dict[str, str]
    evaluate: dict[str, Any] | None  # fields of EvalConfig; None: not measured
    identity: dict[str, Any]  # all that decides the result, as JSON

    @property
    def label(self) -> str:
        """`VARIANT, seed N`."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return (self.folder / RESULT).is_file()


def jobs_of(study: Study, out: Path, seeds: int) -> list[Job]:
    """All jobs, seed by seed, so that a study that stops early has whole seeds.

    Raises:
      ConfigError: a config or override that cannot work, or a folder in `out` with another job.
    """
    first = {job.variant: job for job in _of_seed(study, out, 0, {})}
    configs = {name: _config(job) for name, job in first.items() if job.command}
    jobs = [job for seed in range(seeds) for job in _of_seed(study, out, seed, configs)]
    for job in jobs:
        _refuse_changes(job)
    return jobs


def _of_seed(
    study: Study, out: Path, seed: int, configs: Mapping[str, dict[str, Any]]
) -> Iterator[Job]:
    found: dict[str, Job] = {}
    for name, variant in study.variants.items():
        folder = out / name / f"seed-{seed}"
        before = found.get(variant.of or variant.after)
        evaluate = {**study.evaluate, **variant.evaluate} if variant.measured else None
        run, command = folder / "run", _training(study, variant, seed, before)
        if variant.of and before:
            run, command, trained = before.run, (), before.identity["train"]
        else:
            trained = {
                "config": {**configs.get(name, {}), "seed": seed},
                "environment": dict(variant.environment),
                "after": before.identity["train"] if before else None,
            }
        found[name] = Job(
            variant=name,
            seed=seed,
            folder=folder,
            run=run,
            needs=before.folder if before else None,
            command=command,
            environment=dict(variant.environment),
            evaluate=evaluate,
            identity={"train": trained, "evaluate": jsonable(evaluate)},
        )
        yield found[name]


def _training(study: Study, variant: Variant, seed: int, before: Job | None) -> tuple[str, ...]:
    """The words after `elva train`, without the workdir."""
    words = ["--config", variant.config or study.config, f"--config.seed={seed}"]
    for key, value in variant.overrides.items():
        words.append(f"--config.{key}={value if isinstance(value, str) else repr(value)}")
    if before:
        words.append(f"--config.init_from={before.run}")
        teachers = _teachers((before.command[1], *before.command[3:]))
        if teachers and "teacher.init_from" not in variant.overrides:
            words.append(f"--config.teacher.init_from={before.run / teachers[-1]}")
    return tuple(words)


@functools.cache
def _teachers(words: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that make a teacher, of a config file and overrides."""
    return stages_of_kind(load(words[0], words[1:]), "teacher")


def _config(job: Job) -> dict[str, Any]:
    """The resolved config, without stages that do not run and folders of the study."""
    config = config_to_dict(load(job.command[1], job.command[2:]))
    config["stages"] = {name: config["stages"][name] for name in config["curriculum"]}
    if job.needs:
        config["init_from"] = config["teacher"]["init_from"] = ""
    return config


def _refuse_changes(job: Job) -> None:
    path = job.folder / JOB
    if not path.is_file():
        return
    before = read_json(path)
    if found := list(differences(before, job.identity)):
        raise ConfigError(
            f"{job.folder}: was another job: {'; '.join(found[:3])}; use another --out, or"
            " remove that folder"
        )


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Keys with other values; keys that older versions did not have are no differences."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            yield from differences(old[key], new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {numbers.shown(repr(old))}, is {numbers.shown(repr(new))}"
