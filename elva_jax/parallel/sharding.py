"""One table from logical axis names to mesh axes, for parameters and for activations.

kernel of q_proj   [layers, embed, heads]   stored    [  -  , fsdp,   tensor]
its activation     [batch,  seq,   heads]   computed  [data x fsdp, context, tensor]
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elva_jax.errors import ConfigError
from elva_jax.parallel.mesh import BATCH_AXES

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """The mesh axes that split a dimension with a logical name, in parameters and activations."""

    parameter: MeshAxes = None
    activation: MeshAxes = None


RULES = {
    "batch": Rule(activation=BATCH_AXES),
    "seq": Rule(activation="context"),
    "embed": Rule(parameter="fsdp"),
    "mlp": Rule(parameter="tensor", activation="tensor"),
    "heads": Rule(parameter="tensor", activation="tensor"),
    "kv_heads": Rule(parameter="tensor", activation="tensor"),
    "head_dim": Rule(),
    "vocab": Rule(parameter="tensor", activation="tensor"),
    "layers": Rule(),
    "patch": Rule(),
    "patch_width": Rule(parameter="tensor"),
}


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def logical_axes(abstract_variables: Any) -> Any:
    """Logical names of every parameter as a tree of PartitionSpec, from boxed Linen variables."""
    return nn.get_partition_spec(abstract_variables)


def check_collisions(
    names: tuple[str | None, ...], where: str, *, activation: bool = False
) -> None:
    """Refuses an array of which the table would split two dimensions over one mesh axis.

    Linen would silently drop the second of them.

    Args:
      names: the logical names of its dimensions.
      where: the name of the array, for the error.
      activation: whether the array is an activation, not a parameter.

    Raises:
      ConfigError: naming `where`, the logical names and the mesh axis; or a name is not in the
        table.
    """
    taken: dict[str, str] = {}
    for name in names:
        if name is None:
            continue
        if name not in RULES:
            raise ConfigError(
                f"{where}: unknown logical axis '{name}'; the table in"
                f" elva_jax/parallel/sharding.py has {', '.join(RULES)}"
            )
        rule = RULES[name]
        for axis in mesh_axes(rule.activation if activation else rule.parameter):
            if axis in taken:
                raise ConfigError(
                    f"{where}: logical axes '{taken[axis]}' and '{name}' of {names} both fall on"
                    f" mesh axis '{axis}'"
                )
            taken[axis] = name


def _divisible_rules(
    abstract_variables: Any, mesh: Mesh, counts: Mapping[str, int] | None
) -> dict[str, Rule]:
    """The table, without the mesh axes that do not divide every dimension of a name in the model.

    So a name is split everywhere or nowhere.
    """
    sizes = {name: {count} for name, count in (counts or {}).items()}
    specs, shapes = logical_axes(abstract_variables), nn.meta.unbox(abstract_variables)
    for spec, leaf in zip(
        jax.tree.leaves(specs, is_leaf=_is_spec), jax.tree.leaves(shapes), strict=True
    ):
        for name, size in zip(spec, leaf.shape, strict=False):
            sizes.setdefault(name, set()).add(size)

    def kept(name: str, axes: MeshAxes) -> MeshAxes:
        parts = math.prod(mesh.shape[axis] for axis in mesh_axes(axes))
        return axes if all(size % parts == 0 for size in sizes.get(name, ())) else None

    return {
        name: Rule(parameter=kept(name, rule.parameter), activation=kept(name, rule.activation))
        for name, rule in RULES.items()
    }


def parameter_shardings(
    abstract_variables: Any, mesh: Mesh, counts: Mapping[str, int] | None = None
) -> Any:
    """The NamedSharding of every parameter, in the tree of the unboxed variables.

    Args:
      abstract_variables: boxed variables from `jax.eval_shape(model.init, ...)`; parameters without
        metadata are replicated.
      mesh: the device mesh.
      counts: sizes that no parameter shows, such as the number of key-value heads in a flat kernel;
        where the mesh does not divide one (two key-value heads over four devices), that dimension
        is not split.

    Raises:
      ConfigError: two dimensions of a parameter would be split over one mesh axis.
    """
    rules = _divisible_rules(abstract_variables, mesh, counts)

    def sharding(path: tuple[Any, ...], spec: PartitionSpec) -> NamedSharding:
        check_collisions(tuple(spec), jax.tree_util.keystr(path, simple=True, separator="/"))
        return NamedSharding(
            mesh, PartitionSpec(*(rules[name].parameter if name else None for name in spec))
        )

    return jax.tree_util.tree_map_with_path(
        sharding, logical_axes(abstract_variables), is_leaf=_is_spec
    )


def activation_rules(
    abstract_variables: Any, mesh: Mesh, counts: Mapping[str, int] | None = None
) -> tuple[tuple[str, MeshAxes], ...]:
    """The rules for activations in Linen's form; arguments as for `parameter_shardings`."""
    rules = _divisible_rules(abstract_variables, mesh, counts)
    return tuple((name, rule.activation) for name, rule in rules.items())


def activation_spec(*names: str) -> PartitionSpec:
    """How the mesh in use splits an activation with these logical axes, without axes of size 1."""
    if not nn.get_logical_axis_rules():
        return PartitionSpec(*(None for _ in names))
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = [mesh_axes(part) for part in nn.logical_to_mesh_axes(names) or ()]
    return PartitionSpec(
        *(tuple(name for name in part if sizes[name] > 1) or None for part in parts)
    )


def mesh_axes(*parts: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of all mesh axes in parts of a PartitionSpec, in order."""
    return tuple(
        name for part in parts for name in ((part,) if isinstance(part, str) else part or ())
    )


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: tuple[tuple[str, MeshAxes], ...]) -> Iterator[None]:
    """Sets the mesh and the activation rules for models that are traced inside.

    On a single device it does nothing, so that programs stay free of sharding constraints.
    """
    if mesh.size == 1:
        yield
        return
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def state_shardings(state: Any, params_shardings: Any, mesh: Mesh) -> Any:
    """The shardings of a whole TrainState.

    What has the path (after any prefix) and the shape of a parameter, such as Adam's moments, is
    sharded as that parameter; the rest is replicated.
    """
    shapes = jax.tree_util.tree_leaves_with_path(state.params)
    known = {
        tuple(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(shapes, jax.tree.leaves(params_shardings), strict=True)
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, found = known.get(tuple(path[start:]), (None, None))
            if found is not None and shape == leaf.shape:
                return found
        return replicated

    return jax.tree_util.tree_map_with_path(sharding, state)
