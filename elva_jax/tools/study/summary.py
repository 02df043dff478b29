"""From the results of all jobs to one summary as JSON, which reports are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elva_jax.errors import DataError
from elva_jax.tools.study.describe import Study
from elva_jax.tools.study.jobs import FAILED, RESULT, Job
from elva_jax.tools.study.statistics import Answers, Estimate, accuracies, differences
from elva_jax.utils.json import jsonable
from elva_jax.utils.read import read_json

# What reports show of the columns of `elva evaluate`, and beside them where `evaluate` of the
# baseline has baselines=True.
COLUMNS, FLOORS = ("open", "likelihood"), ("blind", "any_object", "single_frame")


def summarize(name: str, study: Study, jobs: Sequence[Job]) -> dict[str, Any]:
    """All numbers of a study whose jobs may be done in part.

    Returns:
      name, question, note, config, baseline, paper; variants: by name, in the order of the report,
      the accuracies and differences by column and family, cost, tokens and the paper's number;
      floors: accuracies of the baseline without the video, and the like, by column and family;
      missing and failed: labels of jobs; machines and commits; processor time, and the number of
      starts that were killed before theirs was known.

    Raises:
      DataError: a damaged result, or results of different questions.
    """
    measured = {name: study.variants[name] for name in study.measured}
    results = {
        variant: {
            job.seed: read_json(job.folder / RESULT)
            for job in jobs
            if job.variant == variant and job.done
        }
        for variant in measured
    }
    found = {variant: by_seed for variant, by_seed in results.items() if by_seed}
    every = [result for by_seed in found.values() for result in by_seed.values()]
    columns = {column: _answers(found, column) for column in COLUMNS if _has(every, column)}
    baseline = study.measured[0]
    floors = {baseline: found.get(baseline, {})}
    costs = _costs(jobs)
    return {
        "name": name,
        "question": study.question,
        "note": study.note,
        "config": study.config,
        "baseline": baseline,
        "paper": study.paper,
        "questions": len(every[0]["items"]) if every else 0,
        "videos": every[0]["data"]["videos"] if every else 0,
        "data": f"{every[0]['data']['name']}, {every[0]['data']['split']}" if every else "",
        "variants": {
            variant: _variant(columns, found[variant], variant, baseline)
            | {"paper": measured[variant].paper}
            for variant in found
        },
        "floors": {
            column: _written(accuracies(_answers(floors, column), baseline))
            for column in FLOORS
            if _has(list(floors[baseline].values()), column)
        },
        "missing": [job.label for job in jobs if not job.done],
        "failed": [job.label for job in jobs if (job.folder / FAILED).is_file()],
        "machines": _machines(every),
        "commits": sorted({result["machine"]["commit"] for result in every}),
        "cpu_seconds": sum(entry["cpu_seconds"] for entry in costs),
        "killed": sum(entry.get("killed", False) for entry in costs),
    }


def _has(results: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether every result has a column: without `EvalConfig.written` there is no `open`."""
    items = [item for result in results for item in result["items"][:1]]
    return bool(items) and all(column in item["credit"] for item in items)


def _answers(found: Mapping[str, Mapping[int, Any]], column: str) -> Answers:
    results = [result for by_seed in found.values() for result in by_seed.values()]
    keys = [_questions(result) for result in results]
    if any(other != keys[0] for other in keys):
        raise DataError("the results are of different questions; use one data set for a study")
    items = results[0]["items"]
    families, family = np.unique([item["family"] for item in items], return_inverse=True)
    _, video = np.unique([item["video"] for item in items], return_inverse=True)
    return Answers(
        families=tuple(map(str, families)),
        family=family,
        video=video,
        credit={
            variant: {
                seed: np.array([item["credit"][column] for item in result["items"]], float)
                for seed, result in by_seed.items()
            }
            for variant, by_seed in found.items()
        },
    )


def _questions(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    try:
        return [(item["video"], item["family"], item["question"]) for item in result["items"]]
    except (KeyError, TypeError):
        raise DataError("a result.json is damaged; remove it and start the study again") from None


def _variant(
    columns: Mapping[str, Answers], by_seed: Mapping[int, Any], variant: str, baseline: str
) -> dict[str, Any]:
    accuracy = {column: _written(accuracies(x, variant)) for column, x in columns.items()}
    difference = {}
    if variant != baseline and all(baseline in x.credit for x in columns.values()):
        difference = {
            column: _written(differences(x, variant, baseline)) for column, x in columns.items()
        }
    return {
        "seeds": sorted(by_seed),
        "accuracy": accuracy,
        "difference": difference,
        "visual_kept": _mean([result["tokens"].get("visual_kept") for result in by_seed.values()]),
        "seconds": _mean([result["seconds"] for result in by_seed.values()]),
        "training_cpu_seconds": _mean([_cost(result, "train") for result in by_seed.values()]),
        "parameters": next(iter(by_seed.values()))["parameters"],
    }


def _written(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: jsonable(dataclasses.asdict(each)) for name, each in estimates.items()}


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if isinstance(value, (int, float))]
    return float(np.mean(known)) if known else None


def _cost(result: Mapping[str, Any], part: str) -> float:
    return sum(entry["cpu_seconds"] for entry in result["cost"] if entry["part"] == part)


def _costs(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Every start of all jobs that are done, those that others start from among them."""
    results = [read_json(job.folder / RESULT) for job in jobs if job.done]
    return [entry for result in results for entry in result["cost"]]


def _machines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(
        {
            f"{result['machine']['processor']}, {result['machine']['cores']} cores,"
            f" JAX {result['versions']['jax']} on {result['versions']['device']}"
            for result in results
        }
    )
