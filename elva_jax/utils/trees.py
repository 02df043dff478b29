"""Parameter trees as flat mappings from path to leaf, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def key_path(path) -> str:
    """'/'-joined name of a leaf, as freezing's regular expressions, tables of names and error messages see it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat(tree) -> dict[str, Any]:
    """The leaves of a tree by '/'-joined path."""
    return {key_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of leaves by '/'-joined path."""
    return traverse_util.unflatten_dict(dict(params), sep="/")


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their names with dots between."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat
