"""Weights of a run, for what does not go on training it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from elva_jax.checkpoints import checksums
from elva_jax.checkpoints.format import (
    StepArgs,
    StepHandler,
    describe,
    has_checkpoint,
    open_reader,
    saved_steps,
    told_as_damage,
)
from elva_jax.config.serialize import config_from_dict
from elva_jax.errors import CheckpointError
from elva_jax.models import lora
from elva_jax.utils.trees import flatten_paths, key_path

ITEMS = ("params", "meta")  # of a step, which are read here


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model as inference wants it."""

    config: ConfigDict  # the whole run's configuration
    stage: str
    params: dict[
        str, Any
    ]  # elva stages: {"elva": ..., "guidance": ...}; teacher stages: the teacher's tree
    tokenizer_dir: Path
    step: int


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A saved step whose parameters are read one by one, for what should not hold them all."""

    config: ConfigDict  # the whole run's configuration
    stage: str
    tokenizer_dir: Path
    step: int
    shapes: dict[str, jax.ShapeDtypeStruct]  # by '/'-joined path
    where: Path  # directory of the step
    factors: frozenset[str] = (
        frozenset()
    )  # paths of LoRA's factors, which `read` adds to the matrices that they adapt

    def read(self, name: str) -> np.ndarray:
        """One parameter, in host memory.

        Raises:
          CheckpointError: it is damaged.
        """
        leaf, (a, b) = self._read(name), (lora.factor_of(name, factor) for factor in "ab")
        if a not in self.factors:
            return leaf
        return lora.adapted(leaf, self._read(a), self._read(b), _alpha(self.config, self.stage))

    def _read(self, name: str) -> np.ndarray:
        def nested(leaf):
            for key in reversed(name.split("/")):
                leaf = {key: leaf}
            return leaf

        args = ocp.args.PyTreeRestore(
            item=nested(0),
            restore_args=nested(ocp.RestoreArgs(restore_type=np.ndarray)),
            partial_restore=True,
        )
        with told_as_damage(self.where), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            (leaf,) = jax.tree.leaves(reader.restore(self.where / "params", args=args))
        return leaf

    def load_float32(self) -> Run:
        """The whole of it as `load_run` gives it, in float32 whatever it was saved in."""
        return _load(self.where, {}, dict.fromkeys(self.shapes, np.dtype(np.float32)))


def save_weights(folder: str | Path, params: Any, config: ConfigDict, stage: str) -> None:
    """Saves weights alone as step 0, for inference and `init_from`; in little memory beyond the parameters.

    Args:
      folder: a stage's directory.
      params: the stage's tree, or the parts of it that there are.
      config: the configuration that the weights are of.
      stage: name of the stage.
    """
    # Orbax needs room for the largest array; what is more only lets it hold several copies at once.
    concurrent = max(-(-max(leaf.nbytes for leaf in jax.tree.leaves(params)) // 10**9), 1)
    # Compression takes half as much memory again, and saves a fifth of the disk.
    arrays = ocp.PyTreeCheckpointHandler(save_concurrent_gb=concurrent, use_compression=False)
    handlers = {"params": arrays, "meta": ocp.JsonCheckpointHandler()}
    args = StepArgs(
        params=ocp.args.PyTreeSave(params), meta=ocp.args.JsonSave(describe(config, stage, 0))
    )
    with ocp.Checkpointer(StepHandler(**handlers)) as writer:
        writer.save(Path(folder).absolute() / "checkpoints" / "0", args=args)


def load_run(
    path: str | Path,
    *,
    kind: str = "elva",
    shardings: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, Any] | None = None,
) -> Run:
    """Loads the weights of a run, without its optimiser; LoRA's factors are added to the matrices that they adapt.

    Args:
      path: a run's workdir (then the last stage of that kind that has been started), one stage's directory, or one saved step.
      kind: elva | teacher, which stages of a workdir are meant.
      shardings: {'/'-joined parameter path: sharding} for parameters that should not go to the first device whole.
      dtypes: {'/'-joined parameter path: floating dtype} for parameters to be cast; by default they stay as saved.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _load(_whole(_find(Path(path).absolute(), kind)), shardings or {}, dtypes or {})


def _load(where: Path, shardings: Mapping[str, Any], dtypes: Mapping[str, Any]) -> Run:
    """`load_run` of a step that is known to be whole."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(path, leaf):
        name = key_path(path)
        dtype = (
            dtypes.get(name, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        )
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings.get(name, default))

    with told_as_damage(where), open_reader(ITEMS) as reader:
        tree = reader.metadata(where).item_metadata["params"].tree
        params = ocp.args.StandardRestore(jax.tree_util.tree_map_with_path(target, dict(tree)))
        out = reader.restore(
            where, args=ocp.args.Composite(params=params, meta=ocp.args.JsonRestore())
        )
    meta = out["meta"]
    config = config_from_dict(meta["config"])
    merged = lora.merge(out["params"], _alpha(config, meta["stage"]))
    return Run(config, meta["stage"], merged, where.parents[2] / "tokenizer", int(where.name))


def open_run(path: str | Path, *, kind: str = "elva") -> SavedRun:
    """What `load_run` loads, without reading any parameter yet.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    where = _whole(_find(Path(path).absolute(), kind))
    with told_as_damage(where), open_reader(ITEMS) as reader:
        tree = reader.metadata(where).item_metadata["params"].tree
        meta = reader.restore(where, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in flatten_paths(dict(tree)).items()
    }
    factors = frozenset(filter(lora.is_factor, shapes))
    shapes = {name: leaf for name, leaf in shapes.items() if name not in factors}
    return SavedRun(
        config_from_dict(meta["config"]),
        meta["stage"],
        where.parents[2] / "tokenizer",
        int(where.name),
        shapes,
        where,
        factors,
    )


def _whole(where: Path) -> Path:
    """The step, whose weights are compared with their checksums; several processes share the files out, and one that finds damage ends all.

    Raises:
      CheckpointError: they are not what was saved.
    """
    if problem := checksums.damage(where, ITEMS, jax.process_index(), jax.process_count()):
        before = [step for step in saved_steps(where.parents[1]) if step < int(where.name)]
        way_out = (
            f"give {where.with_name(str(before[-1]))}, the step before"
            if before
            else "there is no step before"
        )
        raise CheckpointError(f"{where}: is damaged ({problem}); {way_out}")
    return where


def _alpha(config: ConfigDict, stage: str) -> float:
    """How often the product of a stage's LoRA factors counts, times their rank; of no meaning where it has none."""
    return float(config.stages[stage].optimizer.lora.alpha) if stage in config.stages else 1.0


def _find(path: Path, kind: str) -> Path:
    """The directory of the saved step that a path means."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such directory; give a run's workdir, a stage's directory in it, or one saved step"
        )
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return path
    if (path / "checkpoints").is_dir():
        stage = path
    elif (path / "config.json").is_file():
        config = json.loads((path / "config.json").read_text())
        stages = [
            name
            for name in config["curriculum"]
            if config["stages"][name]["kind"] == kind and has_checkpoint(path / name)
        ]
        if not stages:
            raise CheckpointError(f"{path}: no stage of kind {kind} has saved a checkpoint yet")
        stage = path / stages[-1]
    else:
        raise CheckpointError(
            f"{path}: no checkpoint here; give a run's workdir, a stage's directory in it, or one saved step"
        )
    steps = saved_steps(stage)
    if not steps:
        raise CheckpointError(f"{stage}: has no complete checkpoint yet")
    return stage / "checkpoints" / str(steps[-1])
