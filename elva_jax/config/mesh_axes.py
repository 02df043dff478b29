"""The axes of a mesh as a user writes them: `tensor=4,data=2`, in lmms-eval `tensor:4/data:2`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from elva_jax.config.schema import MeshConfig
from elva_jax.errors import ConfigError
from elva_jax.utils import numbers

AXES = ("data", "fsdp", "context", "tensor")  # from the outermost to the innermost
ANSWERING = ("data", "fsdp", "tensor")  # the axes that split what answering computes


def parse_axes(
    text: str, *, axes: Sequence[str] = ANSWERING, separators: tuple[str, str] = (",", "=")
) -> dict[str, int]:
    """Axes with their sizes; a size of -1 stands for all devices that the other axes leave.

    Args:
      text: what the user gave.
      axes: the axes that it may name, each of them once.
      separators: what stands between two axes, and between an axis and its size.

    Raises:
      ConfigError: text of another form, or more than one size of -1.
    """
    between, equals = separators
    found: dict[str, int] = {}
    for part in text.split(between):
        axis, _, size = part.partition(equals)
        if axis not in axes or not re.fullmatch("-1|[1-9][0-9]{0,8}", size) or axis in found:
            raise ConfigError(
                f"'{numbers.shown(text)}' is not like fsdp{equals}2{between}tensor{equals}4, with"
                f" the axes {', '.join(axes)}; -1 takes all remaining devices"
            )
        found[axis] = int(size)
    if list(found.values()).count(-1) > 1:
        raise ConfigError(f"'{numbers.shown(text)}': only one axis can take the remaining devices")
    return found


def mesh_config(sizes: Mapping[str, int]) -> MeshConfig:
    """A mesh of these sizes; the other axes have one device."""
    return MeshConfig(**{**dict.fromkeys(AXES, 1), **sizes})  # type: ignore[arg-type]  # axes only
