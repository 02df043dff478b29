"""Trees of arrays as flat dictionaries from '/'-joined path to leaf, and back.

{"a": {"b": 1, "c": 2}}  <->  {"a/b": 1, "a/c": 2}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def key_path(path: tuple[Any, ...]) -> str:
    """The '/'-joined name of a leaf, given its path as JAX's tree functions report it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_paths(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree (optimizer states included) by '/'-joined path."""
    return {key_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionaries of leaves by '/'-joined path."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")
