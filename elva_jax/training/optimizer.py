"""The optimiser of a stage: AdamW or Muon, warm-up and cosine, clipping, freezing.

Accumulation of micro-batches is the training step's (a scan), so that one optimiser update sees the averaged gradient.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from elva_jax.errors import ConfigError
from elva_jax.models.lora import is_factor
from elva_jax.utils.trees import flatten_paths, key_path

Schedule = Callable[[jax.Array], jax.Array]


class Optimizer(NamedTuple):
    """A stage's optimiser and what the training step needs to know about it."""

    transform: (
        optax.GradientTransformation
    )  # `init` takes all parameters, `update` the trained ones (`trained`)
    schedule: Schedule  # update number from 0 -> AdamW's learning rate
    labels: dict  # tree of "adamw" | "muon" | "frozen", one per parameter


def make_schedule(peak: float, steps: int, warmup_ratio: float, final_ratio: float) -> Schedule:
    """Linear rise over the first `warmup_ratio` of the steps, then half a cosine down to `final_ratio` of the peak.

    Update n (from 0) of w warm-up updates has peak * (n + 1) / w, so the first one already learns; update w has the peak, and only
    the end of the run, which no update reaches, has exactly final_ratio * peak.
    """
    warmup = round(warmup_ratio * steps)

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        cosine = final_ratio + (1 - final_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(count < warmup, (count + 1) / max(warmup, 1), cosine)

    return schedule


def muon_dimensions(name: str, names: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are a matrix's inputs and outputs, or None where AdamW is right.

    Muon takes the matrices inside the network: not biases, norms or learned vectors, not the token embedding or head (they have a
    `vocab` axis), not the guidance heads. The stacked `layers` axis stays a batch axis, so every layer's matrix is orthogonalised alone.

    Args:
      name: '/'-joined path.
      names: logical axis names, one per axis, None where an axis has none.
    """
    inner = [axis for axis, logical in enumerate(names) if logical != "layers"]
    if (
        len(inner) < 2
        or not name.endswith("kernel")
        or "vocab" in names
        or name.startswith("guidance/")
    ):
        return None
    one_input = (
        len(inner) > 2 and names[inner[0]] == "embed"
    )  # (embed, heads, head_dim) projects from embed
    split = 1 if one_input else len(inner) - 1
    return MuonDimensionNumbers(
        reduction_axis=tuple(inner[:split]), output_axis=tuple(inner[split:])
    )


def make_optimizer(config: ConfigDict, steps: int, params, axes=None) -> Optimizer:
    """Builds the optimiser of `config.stages.<stage>.optimizer` for a parameter tree.

    Args:
      config: the stage's optimizer group.
      steps: updates of the whole stage, which the schedule spans.
      params: parameters (arrays or shapes).
      axes: tree of PartitionSpec with the logical names of each parameter; None: none are known.

    Raises:
      ConfigError: a regular expression in `freeze` is broken or matches nothing.
    """
    dimensions = _dimension_numbers(params, axes)
    frozen = _frozen(config.freeze, params) | _base(config.lora, params)
    if len(frozen) == len(dimensions):
        raise ConfigError(
            f"optimizer.freeze: {', '.join(config.freeze)} freezes every parameter; nothing is left to train"
        )
    label = "muon" if config.name == "muon" else "adamw"
    labels = {
        name: "frozen" if name in frozen else label if dimensions[name] is not None else "adamw"
        for name in dimensions
    }

    def labels_of(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: labels[key_path(path)], tree)

    def dimensions_of(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: dimensions[key_path(path)], tree)

    def decayed(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: key_path(path).endswith(("kernel", "embedding")), tree
        )

    def schedule(peak: float) -> Schedule:
        return make_schedule(peak, steps, config.warmup_ratio, config.final_ratio)

    rate = schedule(config.learning_rate)
    groups = {
        "adamw": optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decayed
        ),
        "muon": muon(
            schedule(config.muon_learning_rate),
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=dimensions_of,
        ),
    }
    used = set(labels.values()) - {"frozen"}
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    update = optax.chain(
        clip, optax.partition({name: groups[name] for name in sorted(used)}, labels_of)
    )
    transform = optax.GradientTransformation(
        lambda params: update.init(trained(params, labels_of(params))), update.update
    )
    return Optimizer(transform, rate, labels_of(params))


def _dimension_numbers(params, axes) -> dict[str, MuonDimensionNumbers | None]:
    leaves = flatten_paths(params)
    specs = (
        [PartitionSpec()] * len(leaves)
        if axes is None
        else jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec))
    )
    padded = (
        tuple(spec) + (None,) * (leaf.ndim - len(spec))
        for spec, leaf in zip(specs, leaves.values(), strict=True)
    )
    return {name: muon_dimensions(name, names) for name, names in zip(leaves, padded, strict=True)}


def _base(lora: ConfigDict, params) -> set[str]:
    """With LoRA, all but its factors and what `lora.also` finds."""
    if not lora.rank:
        return set()
    also = _frozen(lora.also, params, "optimizer.lora.also")
    return {name for name in flatten_paths(params) if not is_factor(name) and name not in also}


def _frozen(patterns: tuple[str, ...], params, key: str = "optimizer.freeze") -> set[str]:
    names = list(flatten_paths(params))
    frozen: set[str] = set()
    for pattern in patterns:
        try:
            hits = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise ConfigError(f"{key}: '{pattern}' is not a regular expression: {error}") from None
        if not hits:
            near = difflib.get_close_matches(pattern, names, 1, 0)
            raise ConfigError(f"{key}: '{pattern}' matches no parameter; the nearest is {near[0]}")
        frozen |= hits
    return frozen


def trained(params, labels):
    """The tree without its frozen leaves (None in their place): what has a gradient and a share in the optimiser's state."""
    return jax.tree.map(lambda leaf, label: None if label == "frozen" else leaf, params, labels)


def joined(trained_params, params):
    """The tree of `params` with the leaves that `trained_params` has in the place of its own."""
    return jax.tree.map(
        lambda new, old: old if new is None else new,
        trained_params,
        params,
        is_leaf=lambda leaf: leaf is None,
    )


def keep_frozen(shapes, optimizer: Optimizer, dtype: str):
    """Shapes of all parameters, frozen floating ones in `dtype`."""

    def one(leaf: jax.ShapeDtypeStruct, label: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype if label == "frozen" else leaf.dtype)

    return jax.tree.map(one, shapes, optimizer.labels)
