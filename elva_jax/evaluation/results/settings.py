"""The settings that stand beside every score, as names and short values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.evaluation.benchmarks.base import Evaluation
from elva_jax.evaluation.results.codec import encode

FIRST = (
    *("checkpoint", "model", "stage", "step", "weights_hash", "prompts_hash"),
    *("dtype", "frames", "merging"),
)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by name, without levels: {"hybrid": {"low_edge": 336}} is hybrid.low_edge 336."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = show(value)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def show(value: Any) -> str:
    """A value as people write it: yes, no, none, or its text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(show(item) for item in value)
    return str(encode(value))


def common(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """The settings with the same value in all benchmarks."""
    found = [flat(evaluation.settings) for evaluation in evaluations]
    return {
        name: value
        for name, value in (found[0] if found else {}).items()
        if all(other.get(name) == value for other in found)
    }


def own(evaluation: Evaluation, shared: Mapping[str, str]) -> dict[str, str]:
    """The settings of one benchmark that are not among those of all."""
    return {
        name: value
        for name, value in flat(evaluation.settings).items()
        if shared.get(name) != value
    }


def _order(name: str) -> tuple[int, str]:
    head = name.partition(".")[0]
    return (FIRST.index(head) if head in FIRST else len(FIRST)), name
