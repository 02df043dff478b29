"""Measures the rows of a table with the runner of benchmarks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks.base import Benchmark, Evaluation
from elva_jax.evaluation.judge.config import JudgeConfig
from elva_jax.evaluation.models import Opened, open_elva
from elva_jax.evaluation.runner.run import evaluate_benchmarks, unjudged, unreadable
from elva_jax.evaluation.runner.settings import BenchmarkConfig
from elva_jax.inference.model import ElvaModel
from elva_jax.models.elva import merging_of, with_merging
from elva_jax.ops.merging import MergeLayer
from elva_jax.tools.tables.figures import Figures
from elva_jax.tools.tables.protocols import Protocol, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint that was given, and the row that it is for.

    Attributes:
      label: of the row; None: all rows, where they are settings of one checkpoint.
      path: of the run, saved step or exported folder.
    """

    label: str | None
    path: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The user's changes to a protocol.

    Attributes:
      benchmarks: those to ask.
      root: folder of their files.
      output: folder of the journals, with which a call continues; None: none.
      limit: number of questions of each benchmark; None: all.
      frames: frames of every video; None: as in the protocol.
      hybrid: frames of two resolutions for every row; {}: as in the protocol.
      merging: whether tokens merge.
      answers: ways of answering, the first of which is shown; the paper's models write.
      judge: the judge of open answers; None: exact match.
      follow_links: whether media may be links that lead out of the benchmarks' folders.
      mesh: devices over which weights and batches are split; None: the first one.
    """

    benchmarks: Sequence[Benchmark]
    root: Path
    output: Path | None = None
    limit: int | None = None
    frames: int | None = None
    hybrid: Mapping[str, int | str] = dataclasses.field(default_factory=dict)
    merging: bool = True
    answers: Sequence[str] = ("generated",)
    judge: JudgeConfig | None = None
    follow_links: bool = False
    mesh: Mesh | None = None


Progress = Callable[[str, str, int, int], None]  # row, benchmark, questions answered, in all


def rows_to_measure(protocol: Protocol, sources: Sequence[Source]) -> list[tuple[str, Row, str]]:
    """(label, row, path) of every row that has a checkpoint, in the order of the table.

    Raises:
      ConfigError: two checkpoints for a row.
    """
    paths: dict[str, str] = {}
    for source in sources:
        for label in protocol.rows if source.label is None else (source.label,):
            if label in paths:
                raise ConfigError(f"--checkpoint: two for the row '{label}'")
            paths[label] = source.path
    whole = {source.path for source in sources if source.label is None}
    found = []
    for label in dict.fromkeys((*protocol.rows, *paths)):
        if label in paths:
            row = protocol.rows.get(label, Row(figures=Figures()))
            # A checkpoint of its own was trained with its reduction.
            own = row if paths[label] in whole else dataclasses.replace(row, reduce=None)
            found.append((label, own, paths[label]))
    return found


def measure(
    protocol: Protocol,
    sources: Sequence[Source],
    asked: Asked,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """The table as JSON: ours and the paper's numbers of each row and benchmark, and the claims.

    Raises:
      ElvaError: a checkpoint or benchmark that cannot be read, or that cannot be reduced.
    """
    cells = []
    opened: tuple[str, Opened] | None = None
    for label, row, path in rows_to_measure(protocol, sources):
        if opened is None or opened[0] != path:
            opened = None  # its memory is free before the next one is read
            opened = path, open_elva(path, asked.mesh)
        evaluations = evaluate_benchmarks(
            _for_row(opened[1], row),
            asked.benchmarks,
            asked.root,
            config_of(protocol, row, asked),
            output=None if asked.output is None else asked.output / protocol.name / label,
            mesh=asked.mesh,
            progress=lambda *done, label=label: progress(label, *done),
        )
        judges = {benchmark.name: benchmark.judge for benchmark in asked.benchmarks}
        for evaluation in evaluations:
            reasons = not_comparable(protocol, row, asked, evaluation, judges[evaluation.benchmark])
            cells.append(_cell(label, row, path, evaluation, reasons))
    return {
        "bench": protocol.name,
        "cells": cells,
        "missing": _missing(protocol, {cell["row"] for cell in cells}),
        "claims": _claims(protocol, cells),
    }


def config_of(protocol: Protocol, row: Row, asked: Asked) -> BenchmarkConfig:
    """How the questions of a row are asked; what the user gives goes before the protocol."""
    hybrid = asked.hybrid or ({} if asked.frames else row.hybrid or protocol.hybrid)
    return BenchmarkConfig(
        answers=asked.answers,
        num_frames=asked.frames,
        hybrid=hybrid,
        merging=asked.merging,
        limit=asked.limit,
        judge=asked.judge,
        follow_links=asked.follow_links,
    )


def _for_row(opened: Opened, row: Row) -> Opened:
    """The model with the reduction of a row; the table has its path apart."""
    model, origin = opened
    model = model if row.reduce is None else reduced(model, *row.reduce)
    return model, {**origin, "checkpoint": None}


def reduced(model: ElvaModel, kind: Literal["merge", "pool"], share: float) -> ElvaModel:
    """The same weights with another reduction of tokens.

    Args:
      model: the model.
      kind: "merge": the model's merging layers, the deep ones down to a share of their tokens;
        "pool": the mean of neighbors in time right after the patch embedding instead.
      share: what is kept.

    Raises:
      ConfigError: no merging layer has a share.
    """
    merging = merging_of(model.config.model)
    if kind == "pool":
        layers: tuple[MergeLayer, ...] = (MergeLayer(0, "pool", 1.0, share),)
    else:
        if all(layer.policy == "threshold" for layer in merging.layers):
            raise ConfigError(
                "model.merge_policies: the checkpoint has no merging layer with a ratio that could"
                " be set; give a checkpoint for each row (--checkpoint LABEL=DIR)"
            )
        layers = tuple(
            layer if layer.policy == "threshold" else dataclasses.replace(layer, ratio=share)
            for layer in merging.layers
        )
    other = with_merging(model.config.model, dataclasses.replace(merging, layers=layers))
    return ElvaModel(
        dataclasses.replace(model.config, model=other),
        model.engine.weights,
        model.tokenizer,
        model.stage,
        mesh=model.engine.placement.mesh,
    )


def not_comparable(
    protocol: Protocol, row: Row, asked: Asked, evaluation: Evaluation, judge: str
) -> list[str]:
    """Why our number and the paper's are not the same measurement; [] where they are."""
    reasons = []
    if evaluation.benchmark not in protocol.tasks:
        reasons.append("another benchmark than the paper's")
    elif evaluation.benchmark not in row.figures.values:
        reasons.append("the paper's number is not known here")
    if asked.limit is not None:
        reasons.append(f"a limit of {asked.limit} questions")
    if asked.frames or asked.hybrid:
        reasons.append("other frames than the paper's")
    if not asked.merging:
        reasons.append("merging is off")
    if next(iter(evaluation.scores)) != "generated":
        reasons.append("not a written answer")
    if judge and evaluation.settings.get("judge") in (None, "", "none"):
        reasons.append("exact match; the paper has a judge")
    elif judge:
        reasons.append("another judge or prompt than the paper's")
    if failed := sum(unjudged(evaluation).values()):
        reasons.append(f"{failed} requests to the judge failed")
    if row.figures.second_hand and evaluation.benchmark in row.figures.values:
        reasons.append("the paper's number is second-hand")
    if failed := sum(unreadable(evaluation).values()):
        reasons.append(f"{failed} questions about media that cannot be read")
    return reasons


def _cell(
    label: str, row: Row, path: str, evaluation: Evaluation, reasons: list[str]
) -> dict[str, Any]:
    """One number of the table."""
    way, scores = next(iter(evaluation.scores.items()))
    paper = row.figures.values.get(evaluation.benchmark)
    main, tokens = scores.main, [g.response.tokens for g in evaluation.grades[way]]
    tokens = [each for each in tokens if each]
    return {
        "row": label,
        "checkpoint": path,
        "benchmark": evaluation.benchmark,
        "title": evaluation.title,
        "metric": main.name,
        "answer": way,
        "ours": _finite(main.value),
        "low": _finite(main.low),
        "high": _finite(main.high),
        "maximum": main.maximum,
        "questions": main.count,
        "statuses": dict(scores.statuses),
        "paper": paper,
        "difference": None if paper is None else _finite(main.value - paper),
        "not_comparable": reasons,
        # Of the prompt before merging, and the share that is left after the last merging layer.
        "tokens": _mean([each[0] for each in tokens]),
        "kept": _mean([each[-1] / each[0] for each in tokens]),
        "questions_per_second": main.count / evaluation.seconds if evaluation.seconds else None,
        "settings": dict(evaluation.settings),
    }


def _missing(protocol: Protocol, measured: set[str]) -> list[dict[str, Any]]:
    """The paper's rows without a checkpoint."""
    return [
        {"row": label, "recipe": row.recipe, "paper": dict(row.figures.values)}
        for label, row in protocol.rows.items()
        if label not in measured
    ]


def _claims(protocol: Protocol, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The paper's statements with our differences, where both rows were measured."""
    ours = {(cell["row"], cell["benchmark"]): cell["ours"] for cell in cells}
    found = []
    for claim in protocol.claims:
        pairs = [(ours.get((claim.more, b)), ours.get((claim.less, b))) for b in claim.benchmarks]
        gains = [a - b for a, b in pairs if a is not None and b is not None]
        found.append({**dataclasses.asdict(claim), "ours": _mean(gains), "measured": len(gains)})
    return found


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
