"""One table from logical axis names to mesh axes, for parameters and for activations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elva_jax.errors import ConfigError
from elva_jax.parallel.mesh import BATCH_AXES

# logical name -> (mesh axes of a parameter's dimension, mesh axes of an activation's dimension)
RULES: dict[str, tuple[Any, Any]] = {
    "batch": (None, BATCH_AXES),
    "seq": (None, "context"),
    "embed": ("fsdp", None),
    "mlp": ("tensor", "tensor"),
    "heads": ("tensor", "tensor"),
    "kv_heads": ("tensor", "tensor"),
    "head_dim": (None, None),
    "vocab": ("tensor", "tensor"),
    "layers": (None, None),
    "patch": (None, None),
    "patch_width": ("tensor", None),
}


def _is_spec(leaf) -> bool:
    return isinstance(leaf, PartitionSpec)


def logical_axes(abstract_variables):
    """Logical names of every parameter, as a tree of PartitionSpec, from Linen's metadata on (abstract) boxed variables."""
    return nn.get_partition_spec(abstract_variables)


def check_collisions(names: tuple[str | None, ...], where: str, column: int = 0) -> None:
    """Refuses an array of which two dimensions would fall on one mesh axis, or a name that the table lacks.

    Args:
      names: logical names of its dimensions.
      where: its name.
      column: 0 for a parameter, 1 for an activation.

    Raises:
      ConfigError: naming `where`, the logical names and the mesh axis.
    """
    taken: dict[str, str] = {}
    for name in names:
        if name is None:
            continue
        if name not in RULES:
            raise ConfigError(
                f"{where}: unknown logical axis '{name}'; the table in elva_jax/parallel/sharding.py has {', '.join(RULES)}"
            )
        axes = RULES[name][column]
        for axis in mesh_axes(axes):
            if axis in taken:
                raise ConfigError(
                    f"{where}: logical axes '{taken[axis]}' and '{name}' of {names} both fall on mesh axis '{axis}'"
                )
            taken[axis] = name


def _parts(axes, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in mesh_axes(axes))


def _fitting(
    abstract_variables, mesh: Mesh, counts: Mapping[str, int]
) -> dict[str, tuple[Any, Any]]:
    """The table without what the mesh does not divide: a name is split everywhere in a model or nowhere."""
    sizes = {name: {count} for name, count in counts.items()}
    specs, shapes = logical_axes(abstract_variables), nn.meta.unbox(abstract_variables)
    for spec, leaf in zip(
        jax.tree.leaves(specs, is_leaf=_is_spec), jax.tree.leaves(shapes), strict=True
    ):
        for name, size in zip(spec, leaf.shape, strict=False):
            sizes.setdefault(name, set()).add(size)

    def kept(name: str, axes):
        return axes if all(size % _parts(axes, mesh) == 0 for size in sizes.get(name, ())) else None

    return {name: tuple(kept(name, axes) for axes in columns) for name, columns in RULES.items()}


def parameter_shardings(abstract_variables, mesh: Mesh, counts: Mapping[str, int] | None = None):
    """NamedSharding of every parameter, in the tree of the unboxed variables.

    Args:
      abstract_variables: boxed variables from `jax.eval_shape(model.init, ...)`; parameters without metadata are replicated.
      mesh: the device mesh.
      counts: sizes that no parameter shows, such as the number of key-value heads behind a flat kernel; what the mesh does not divide
        (two key-value heads over four devices) stays whole.

    Raises:
      ConfigError: two dimensions of a parameter fall on one mesh axis.
    """
    rules = _fitting(abstract_variables, mesh, counts or {})

    def one(path, spec):
        check_collisions(tuple(spec), jax.tree_util.keystr(path, simple=True, separator="/"))
        return NamedSharding(
            mesh, PartitionSpec(*(rules[name][0] if name else None for name in spec))
        )

    return jax.tree_util.tree_map_with_path(one, logical_axes(abstract_variables), is_leaf=_is_spec)


def activation_rules(
    abstract_variables, mesh: Mesh, counts: Mapping[str, int] | None = None
) -> tuple[tuple[str, Any], ...]:
    """The table's activation column as Linen wants it; arguments as for `parameter_shardings`."""
    return tuple(
        (name, axes) for name, (_, axes) in _fitting(abstract_variables, mesh, counts or {}).items()
    )


def split_of(*names: str) -> PartitionSpec:
    """How the mesh in force splits an activation of these logical axes; mesh axes of size 1 are left out."""
    if not nn.get_logical_axis_rules():
        return PartitionSpec(*(None for _ in names))
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = [mesh_axes(part) for part in nn.logical_to_mesh_axes(names)]
    return PartitionSpec(
        *(tuple(name for name in part if sizes[name] > 1) or None for part in parts)
    )


def mesh_axes(*parts: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the mesh axes in parts of a PartitionSpec, one after the other."""
    return tuple(
        name for part in parts for name in ((part,) if isinstance(part, str) else part or ())
    )


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: tuple[tuple[str, Any], ...]) -> Iterator[None]:
    """Within it, traced models see the mesh and the activation rules; a single device sees neither, at no cost."""
    if mesh.size == 1:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def state_shardings(state, params_shardings, mesh: Mesh):
    """Shardings of a whole TrainState: what has a parameter's path and shape (Adam's moments) lies as it does, the rest is whole."""
    shapes = jax.tree_util.tree_leaves_with_path(state.params)
    known = {
        tuple(path): (leaf.shape, where)
        for (path, leaf), where in zip(shapes, jax.tree.leaves(params_shardings), strict=True)
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def one(path, leaf):
        for start in range(len(path)):
            shape, where = known.get(tuple(path[start:]), (None, None))
            if shape == leaf.shape:
                return where
        return whole

    return jax.tree_util.tree_map_with_path(one, state)
