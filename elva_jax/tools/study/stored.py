"""Summaries of studies as files, which other machines and older versions may have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elva_jax.errors import DataError
from elva_jax.tools.study.statistics import MACRO
from elva_jax.utils.failures import repr_path
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import check_output, open_output, read_json

DIGITS = 3  # after the point, of percentages and seconds in a stored file
NUMBER, MAYBE = (int, float), (int, float, type(None))
EACH = "each"  # stands for every key of an object, of which there is at least one
ANY = "any"  # the same, and there may be none
ESTIMATE = {"value": NUMBER, "low": NUMBER, "high": NUMBER, "by_seed": {EACH: NUMBER}}
VARIANT = {
    "seeds": [int],
    "accuracy": {EACH: {EACH: ESTIMATE}},
    "difference": {ANY: {ANY: ESTIMATE}},
    "visual_kept": MAYBE,
    "seconds": NUMBER,
    "training_cpu_seconds": NUMBER,
    "parameters": int,
    "paper": MAYBE,
}
SUMMARY = {
    **dict.fromkeys(("name", "question", "note", "config", "baseline", "paper", "data"), str),
    **{key: [str] for key in ("missing", "failed", "machines", "commits")},
    **dict.fromkeys(("questions", "videos"), int),
    "cpu_seconds": NUMBER,
    "variants": {ANY: VARIANT},
    "floors": {ANY: {ANY: ESTIMATE}},
    "killed": int,
}
LATER = {"floors": {}, "killed": 0}  # what summaries of older versions do not have


def save_summary(summary: Mapping[str, Any], path: Path, option: str) -> None:
    """Writes a summary, rounded, for a repository.

    Args:
      summary: from `summarize` or `load_summary`.
      path: the file.
      option: its name in messages.

    Raises:
      ConfigError: the file cannot be written.
    """
    with open_output(check_output(path, option), option) as file:
        file.write(json.dumps(_rounded(summary), indent=1, ensure_ascii=False) + "\n")


def load_summary(path: Path) -> dict[str, Any]:
    """A summary that was written before; of a folder, its summary.json.

    Raises:
      DataError: no such file, or not a summary of a study.
    """
    file = path / "summary.json" if path.is_dir() else path
    found = read_json(file, remedy="give a summary.json that elva study wrote")
    found = {**LATER, **found}
    problem = _problem(found, SUMMARY) or _uneven(found["variants"])
    if problem:
        raise DataError(
            f"{repr_path(file)}: is no summary of a study ({problem}); give a summary.json that"
            " elva study wrote"
        )
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def _problem(value: Any, shape: Any, at: str = "") -> str:
    """The first part of a JSON value that has not the shape, in words; "": none."""
    where = at or "its content"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        found = (_problem(inner, shape[0], f"{at}[{k}]") for k, inner in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(shape, dict):
        fits = isinstance(value, shape) and not isinstance(value, bool)
        return "" if fits else f"{where} is {shown(repr(value))}"
    if not isinstance(value, dict):
        return f"{where} is no object"
    if EACH in shape or ANY in shape:
        if EACH in shape and not value:
            return f"{where} is empty"
        shape = dict.fromkeys(value, next(iter(shape.values())))
    for key, inner in shape.items():
        place = f"{at}.{shown(key)}" if at else shown(key)
        if key not in value:
            return f"has no {place}"
        if problem := _problem(value[key], inner, place):
            return problem
    return ""


def _uneven(variants: Mapping[str, Any]) -> str:
    """Whether variants have other columns or families than the first one, in words."""
    columns: dict[str, Any] = {}
    for name, variant in variants.items():
        own = {column: list(families) for column, families in variant["accuracy"].items()}
        columns = columns or own
        if own != columns or any(MACRO not in families for families in own.values()):
            return f"variants.{shown(name)}.accuracy has other columns or families"
    return ""
