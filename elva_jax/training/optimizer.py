r"""The optimizer of a stage: AdamW or Muon, warm-up and cosine, clipping, frozen parameters.

    rate     peak |   /--__           update n of w warm-up updates: peak (n + 1) / w
                  |  /     \__        then half a cosine,
      final * peak| /         \_      which reaches final * peak after the last update
                  +---+---------
                      w     steps

Micro-batches are accumulated by the training step, so one update sees their mean gradient.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from optax.contrib import MuonDimensionNumbers, muon

from elva_jax.config.schema import LoraConfig, OptimizerConfig
from elva_jax.errors import ConfigError
from elva_jax.utils.patterns import Matcher
from elva_jax.utils.trees import flatten_paths, key_path

Schedule = Callable[[jax.Array], jax.Array]
KERNELS = ("kernel", "embedding")  # ends of the paths of what `decay_on = kernels` decays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A stage's optimizer, and what the training step must know about it."""

    # `init` takes all parameters, `update` those that are trained (see `trained_part`).
    transform: optax.GradientTransformation
    schedule: Schedule  # number of the update, from 0 -> AdamW's learning rate
    labels: Any  # "adamw" | "muon" | "frozen" for each parameter


def make_schedule(peak: float, steps: int, warmup_ratio: float, final_ratio: float) -> Schedule:
    """A linear rise over `warmup_ratio` of the steps, then half a cosine down to `final_ratio`.

    Update n (from 0) of w warm-up updates has peak * (n + 1) / w, so the first one learns already;
    update w has the peak. The exact end of the cosine is after the last update.
    """
    warmup = round(warmup_ratio * steps)

    def schedule(count: jax.Array) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        cosine = final_ratio + (1 - final_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(count < warmup, (count + 1) / max(warmup, 1), cosine)

    return schedule


def muon_dimensions(path: str, names: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
    """The axes of a parameter that are a matrix's inputs and outputs; None where AdamW is right.

    Muon takes the matrices inside the network: not biases, norms or learned vectors, not the token
    embedding or the head (they have a `vocab` axis). The stacked `layers`
    axis stays a batch axis, so the matrix of every layer is orthogonalized alone.

    Args:
      path: '/'-joined.
      names: logical names of the axes, None where an axis has none.
    """
    inner = [axis for axis, logical in enumerate(names) if logical != "layers"]
    is_matrix = len(inner) > 1 and path.endswith("kernel") and "vocab" not in names
    if not is_matrix:
        return None
    # (embed, heads, head_dim) projects from embed; others have one output axis.
    one_input = len(inner) > 2 and names[inner[0]] == "embed"
    split = 1 if one_input else len(inner) - 1
    return MuonDimensionNumbers(
        reduction_axis=tuple(inner[:split]), output_axis=tuple(inner[split:])
    )


def make_optimizer(
    settings: OptimizerConfig,
    steps: int,
    params: Any,
    axes: Any = None,
    is_adapter: Callable[[str], bool] = lambda path: False,
    is_outside: Callable[[str], bool] = lambda path: False,
) -> Optimizer:
    """Builds the optimizer of `config.stages.<stage>.optimizer` for a parameter tree.

    Args:
      settings: the stage's optimizer group.
      steps: updates of the whole stage, which the schedule spans.
      params: parameters (arrays or shapes).
      axes: tree of PartitionSpec with the logical names of each parameter; None: none are known.
      is_adapter: whether the parameter at a path is a factor of LoRA.
      is_outside: whether it is none that Muon takes, whatever its shape; see `Task`.

    Raises:
      ConfigError: a regular expression in `freeze` is broken or matches nothing.
    """
    names = _axis_names(params, axes)
    dimensions = {
        path: None if is_outside(path) else muon_dimensions(path, axis)
        for path, axis in names.items()
    }
    decayed = {path for path, axis in names.items() if is_decayed(settings.decay_on, path, axis)}
    frozen = _matching(settings.freeze, params, "optimizer.freeze")
    frozen |= _beside_lora(settings.lora, params, is_adapter)
    if len(frozen) == len(dimensions):
        raise ConfigError(
            f"optimizer.freeze: {', '.join(settings.freeze)} freezes every parameter;"
            " nothing is left to train"
        )
    label = "muon" if settings.name == "muon" else "adamw"
    labels = {
        path: "frozen" if path in frozen else label if matrix is not None else "adamw"
        for path, matrix in dimensions.items()
    }

    def by_path(value: Callable[[str], Any]) -> Callable[[Any], Any]:
        """A function that replaces each leaf of a tree by the value of its path."""
        return lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: value(key_path(path)), tree
        )

    def schedule(peak: float) -> Schedule:
        return make_schedule(peak, steps, settings.warmup_ratio, settings.final_ratio)

    label_tree, rate = by_path(labels.__getitem__), schedule(settings.learning_rate)
    groups = {
        "adamw": optax.adamw(
            rate,
            settings.b1,
            settings.b2,
            settings.eps,
            weight_decay=settings.weight_decay,
            mask=by_path(decayed.__contains__),
        ),
        "muon": muon(
            schedule(settings.muon_learning_rate),
            weight_decay=settings.weight_decay,
            muon_weight_dimension_numbers=by_path(dimensions.__getitem__),
        ),
    }
    used = sorted(set(labels.values()) - {"frozen"})
    norm = settings.clip_norm
    update = optax.chain(
        optax.clip_by_global_norm(norm) if norm else optax.identity(),
        optax.partition({name: groups[name] for name in used}, label_tree),
    )
    return Optimizer(
        transform=optax.GradientTransformation(
            lambda params: update.init(trained_part(params, label_tree(params))), update.update
        ),
        schedule=rate,
        labels=label_tree(params),
    )


def is_decayed(
    decay_on: Literal["kernels", "matrices", "all"], path: str, names: tuple[str | None, ...]
) -> bool:
    """Whether AdamW's weight decay acts on a parameter.

    "matrices" is the rule of PyTorch recipes, which see the layers one by one: everything with two
    or more axes, apart from biases. A bias per head has two axes here.

    Args:
      decay_on: the key `optimizer.decay_on`.
      path: '/'-joined.
      names: logical names of the axes, None where an axis has none.
    """
    if decay_on == "all":
        return True
    if decay_on == "kernels":
        return path.endswith(KERNELS)
    axes = [name for name in names if name != "layers"]
    return len(axes) > 1 and not path.endswith("bias")


def _axis_names(params: Any, axes: Any) -> dict[str, tuple[str | None, ...]]:
    """The logical names of the axes of each parameter, by path."""
    leaves = flatten_paths(params)
    specs = [PartitionSpec()] * len(leaves)
    if axes is not None:
        specs = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec))
    return {
        path: tuple(spec) + (None,) * (leaf.ndim - len(spec))
        for (path, leaf), spec in zip(leaves.items(), specs, strict=True)
    }


def _beside_lora(lora: LoraConfig, params: Any, is_adapter: Callable[[str], bool]) -> set[str]:
    """The parameters that LoRA freezes: all but its factors and the matches of `lora.also`."""
    if not lora.rank:
        return set()
    also = _matching(lora.also, params, "optimizer.lora.also")
    return {path for path in flatten_paths(params) if not is_adapter(path) and path not in also}


def _matching(patterns: Sequence[str], params: Any, key: str) -> set[str]:
    """The paths in which any of the regular expressions is found; `key` is theirs."""
    paths, found, matcher = list(flatten_paths(params)), set(), Matcher(key, ConfigError)
    for pattern in patterns:
        hits = {path for path in paths if matcher.search(pattern, path)}
        if not hits:
            near = difflib.get_close_matches(pattern, paths, 1, 0)
            raise ConfigError(f"{key}: '{pattern}' matches no parameter; the nearest is {near[0]}")
        found |= hits
    return found


def trained_part(params: Any, labels: Any) -> Any:
    """The tree with None for its frozen leaves, which have no gradient and no optimizer state."""
    return jax.tree.map(lambda leaf, label: None if label == "frozen" else leaf, params, labels)


def join_frozen(trained: Any, params: Any) -> Any:
    """The tree of `params` with the leaves of `trained` where that is not None."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None
    )


def keep_frozen(shapes: Any, optimizer: Optimizer, dtype: str) -> Any:
    """Shapes of all parameters, with the frozen ones in `dtype`."""
    return jax.tree.map(
        lambda leaf, label: jax.ShapeDtypeStruct(
            leaf.shape, dtype if label == "frozen" else leaf.dtype
        ),
        shapes,
        optimizer.labels,
    )
