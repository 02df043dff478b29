"""Finds stages by their kind, for code that does not import the tasks."""

from __future__ import annotations

from collections.abc import Iterable

from ml_collections import ConfigDict

from elva_jax.config.schema import Config


def stages_of_kind(
    config: ConfigDict | Config, kind: str, among: Iterable[str] | None = None
) -> tuple[str, ...]:
    """Names of the stages of a kind, in order; `among` defaults to the curriculum."""
    names = config.curriculum if among is None else among
    return tuple(name for name in names if config.stages[name].kind == kind)
