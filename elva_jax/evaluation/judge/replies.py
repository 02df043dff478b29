"""Strict parsing of a judge's reply.

{"pred": "yes", "score": 4}      also with text around it, in Python's quotes, or "4" as a text

Points are cut to whole ones, as the benchmarks' own scripts do. A reply is never repaired, and what
cannot be read is a failure, not 0 points.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elva_jax.evaluation.benchmarks.open_answers import HIGHEST
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import parse_json

LONGEST = 4000  # characters of a reply that are looked at
_OBJECT = re.compile(r"\{[^{}]{0,1000}\}")
_NUMBER = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict of a judge about one answer.

    Attributes:
      right: whether it means the same as the reference; None: not said, or not asked for.
      points: 0 to 5; None: none that can be read.
      failure: why the reply is none, in a few words; "": it is one.
    """

    right: bool | None = None
    points: float | None = None
    failure: str = ""


def parse_reply(text: str, *, with_verdict: bool) -> Verdict:
    """The verdict in a reply.

    Args:
      text: the reply.
      with_verdict: whether `pred` must say yes or no. A reply that says neither is a failure whose
        points count.
    """
    match = _OBJECT.search(text[:LONGEST])
    fields = _object(match[0]) if match else None
    if fields is None:
        return Verdict(failure=f"the reply is no JSON object ({shown(text[:60])})")
    points = _points(fields.get("score"))
    if points is None:
        said = shown(fields.get("score"))
        return Verdict(failure=f"the score {said} is no number from 0 to {HIGHEST:g}")
    if not with_verdict:
        return Verdict(points=points)
    said = str(fields.get("pred")).strip().casefold()
    if said not in ("yes", "no"):
        failure = f"the verdict {shown(fields.get('pred'))} is neither yes nor no"
        return Verdict(points=points, failure=failure)
    return Verdict(right=said == "yes", points=points)


def _object(text: str) -> Mapping[str, Any] | None:
    try:
        value = parse_json(text)
    except ValueError:
        value = _python_dict(text)
    return value if isinstance(value, dict) else None


def _python_dict(text: str) -> object:
    """A dict of literals with each key once; None: the text is none."""
    try:
        tree = ast.parse(text, mode="eval").body
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not (isinstance(tree, ast.Dict) and isinstance(value, dict)):
        return None
    return value if len(value) == len(tree.keys) else None


def _points(value: object) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not 0 <= value <= HIGHEST:  # NaN is in no range
        return None
    return float(math.floor(value))
